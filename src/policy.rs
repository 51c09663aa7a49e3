//! What to keep: budgets, direction, protection, order. No GPU here.

use std::ops::Range;

use crate::criterion::Score;
use crate::error::ArgumentError;
use crate::shape::KvShape;

/// How a keep ratio becomes a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rounding {
    /// Up, as l2compress does.
    #[default]
    Ceil,
    /// Down, as kvpress does (but never below one token).
    Floor,
}

/// Tokens kept a row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// A share of the row's length, 0 to 1: 0.9 keeps nine tokens of ten.
    KeepRatio {
        /// Share of tokens that is kept.
        keep_ratio: f64,
        /// Rounding of `keep_ratio * len`.
        rounding: Rounding,
    },
    /// An absolute number of tokens a row. Rows that are shorter are left whole.
    KeepTokens(u32),
    /// Every key whose L2 norm is at most this: 0 or more, in the keys' own unit. Its square is rounded down to f32 and
    /// compared with the squared norms as bits. Only with [`Direction::Lowest`].
    MaxNorm(f32),
}

impl Budget {
    /// A keep ratio, rounded up.
    #[must_use]
    pub const fn keep_ratio(keep_ratio: f64) -> Self {
        Self::KeepRatio { keep_ratio, rounding: Rounding::Ceil }
    }

    pub(crate) fn rule(&self) -> Result<BudgetRule, ArgumentError> {
        match *self {
            Self::KeepRatio { keep_ratio, rounding } => {
                if !(0.0..=1.0).contains(&keep_ratio) {
                    return Err(ArgumentError::KeepRatio { got: keep_ratio });
                }
                Ok(BudgetRule::ratio(keep_ratio, rounding))
            }
            Self::KeepTokens(0) => Err(ArgumentError::ZeroDimension { argument: "keep_tokens" }),
            Self::KeepTokens(tokens) => Ok(BudgetRule { mode: 2, tokens, ..BudgetRule::NONE }),
            Self::MaxNorm(max_norm) => {
                if max_norm.is_nan() || max_norm < 0.0 {
                    return Err(ArgumentError::MaxNorm { got: max_norm });
                }
                Ok(BudgetRule { mode: 3, key_limit: square_rounded_down(max_norm).to_bits() + 1, ..BudgetRule::NONE })
            }
        }
    }

    /// Tokens kept of a row of `len` tokens of which `num_protected` are protected:
    /// `min(len, max(asked, num_protected, 1))`. The integers are the same as on the GPU.
    ///
    /// A ratio is held as a 40-bit fixed-point number, rounded so that `0.55 * 100` is 55 tokens in either rounding.
    /// [`Budget::MaxNorm`] depends on the keys; this is the most it can keep.
    ///
    /// # Errors
    /// As [`Policy::check`] for the budget.
    ///
    /// # Example
    /// ```
    /// use keynorm::Budget;
    /// assert_eq!(Budget::keep_ratio(0.5).tokens(101, 0)?, 51);
    /// assert_eq!(Budget::KeepTokens(64).tokens(101, 70)?, 70);
    /// # Ok::<(), keynorm::ArgumentError>(())
    /// ```
    pub fn tokens(&self, len: u32, num_protected: u32) -> Result<u32, ArgumentError> {
        Ok(self.rule()?.tokens(len, num_protected, len))
    }
}

/// The largest f32 that does not exceed the square, so that `n <= square` and `n <= the result` agree for every f32.
fn square_rounded_down(value: f32) -> f32 {
    let square = f64::from(value) * f64::from(value); // exact
    #[expect(clippy::cast_possible_truncation, reason = "rounded to nearest, then corrected")]
    let nearest = square as f32;
    if f64::from(nearest) > square { nearest.next_down() } else { nearest }
}

/// A budget for some rows in place of the policy's.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetOverride {
    /// Layers of the shape.
    pub layers: Range<u32>,
    /// KV heads of those layers.
    pub heads: Range<u32>,
    /// Tokens kept of each of these rows. Rows of one sequence may so come to have different lengths.
    pub budget: Budget,
}

/// Budgets pooled across the KV heads of a layer: a sequence keeps as many tokens of the layer as its heads' budgets add
/// up to, but heads with many low keys keep more of them.
///
/// Heads are made comparable by the distance of each order key from the median of its head's unprotected ones, in bits of
/// f32: about the logarithm of norm over median, in integers, so that the result is the same on every device. What is
/// kept of a layer are its lowest distances, lower head first among equals; within a head, as ever, the lowest keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Tokens that every head keeps of its own in any case (as far as it has them); 0 counts as 1.
    pub min_tokens: u32,
}

/// The budget of a row as the shaders hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BudgetRule {
    /// 0 ratio rounded up, 1 ratio rounded down, 2 tokens, 3 keys up to a limit.
    pub mode: u32,
    /// Keep ratio times 2⁴⁰, rounded towards the exact product: down for `Ceil`, up for `Floor`.
    pub ratio: u64,
    pub tokens: u32,
    /// Highest order key that is kept, in mode 3.
    pub key_limit: u32,
    /// Rows of fewer tokens are left whole.
    pub min_len: u32,
}

const RATIO_ONE: f64 = (1u64 << 40) as f64;

impl BudgetRule {
    const NONE: Self = Self { mode: 0, ratio: 0, tokens: 0, key_limit: 0, min_len: 0 };

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number from 0 to 2^40")]
    pub fn ratio(keep_ratio: f64, rounding: Rounding) -> Self {
        let scaled = keep_ratio * RATIO_ONE;
        match rounding {
            Rounding::Ceil => Self { mode: 0, ratio: scaled.floor() as u64, ..Self::NONE },
            Rounding::Floor => Self { mode: 1, ratio: scaled.ceil() as u64, ..Self::NONE },
        }
    }

    /// The budget asked for, before any raise. `num_within` counts the order keys up to `key_limit`.
    #[expect(clippy::cast_possible_truncation, reason = "at most len, a u32")]
    pub fn asked(&self, len: u32, num_within: u32) -> u32 {
        let product = u128::from(len) * u128::from(self.ratio);
        match self.mode {
            _ if len < self.min_len => len,
            0 => product.div_ceil(1 << 40) as u32,
            1 => (product >> 40) as u32,
            2 => self.tokens,
            _ => num_within,
        }
    }

    pub fn tokens(&self, len: u32, num_protected: u32, num_within: u32) -> u32 {
        len.min(self.asked(len, num_within).max(num_protected).max(1))
    }
}

/// Which keys are kept first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Direction {
    /// Lowest score: the paper's method.
    #[default]
    Lowest,
    /// Highest score: of the norm, the paper's counter-example.
    Highest,
    /// By a hash of (seed, layer, row, original position), whatever the score: the paper's control.
    Random {
        /// Seed of the hash.
        seed: u64,
    },
}

/// Where the kept tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Order {
    /// Kept slots below the budget stay; the others fill the holes. Moves the fewest bytes. Slots are out of order
    /// afterwards, so cutting a cache by slot further back than the last compression is wrong; see
    /// [`Bound::record_truncate`](crate::Bound::record_truncate).
    #[default]
    Fill,
    /// Kept tokens keep their order.
    Positional,
}

/// How the threshold of a row is found. Every choice gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Selector {
    /// As measured: where rows of up to 8192 tokens (the `max_len` of the record) fill the device, or are short, each is
    /// compressed whole by one workgroup, in one dispatch; where they are few, of up to 16384, in two; elsewhere radix, whose
    /// passes are as many however long a row is.
    #[default]
    Auto,
    /// A parallel bitonic sort of the order keys: in workgroup memory where a row fits, tiles and merges beyond.
    Bitonic,
    /// Histograms of the order keys' digits.
    Radix,
}

/// Everything that decides which tokens are kept, and in which order.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Tokens kept a row.
    pub budget: Budget,
    /// By what tokens are compared.
    pub score: Score,
    /// Which keys are kept first.
    pub direction: Direction,
    /// The tokens at original positions below this are always kept.
    pub sinks: u32,
    /// The last tokens by original position that are always kept: those at `num_seen - recent` and beyond, even if
    /// fewer of them survive.
    pub recent: u32,
    /// Where given, `recent` is at most this share of the row's length, 0 to 1, rounded down: a window that shrinks with
    /// short rows or small budgets. Held as a 40-bit fixed-point number, as keep ratios are.
    pub recent_share: Option<f64>,
    /// Layers that are left whole. They cost nothing.
    pub skip_layers: Vec<u32>,
    /// Where the kept tokens go.
    pub order: Order,
    /// How thresholds are found.
    pub selector: Selector,
    /// Budgets of single layers and heads, in place of `budget`; a later entry goes before an earlier one.
    pub budgets: Vec<BudgetOverride>,
    /// Budgets shared by the heads of a layer.
    pub pool: Option<Pool>,
    /// Rows of fewer tokens than this are left whole: with a cap here, a decode loop may record every step and rows are
    /// compressed when they reach it, each on its own. 0: none.
    pub min_len: u32,
    /// Whether the segments of [`CacheState::set_segments`](crate::CacheState::set_segments) are kept to: pinned ranges
    /// and quotas. Off, they cost nothing.
    pub segments: bool,
    /// Keep each key's norm in the cache state and move it with its row, so that a later compression reads no keys but
    /// new ones.
    ///
    /// With [`Score::KeyDiff`] it is scores that are kept, and the sum of each row's normalised keys: a key is compared
    /// once, when it is new, with the mean of all keys that its row has seen until then, those dropped since included. One
    /// prefill gives what KeyDiff gives without this; afterwards old scores are not revised as the mean moves on. A row
    /// whose scores start anew (`scored` is 0) starts its sum anew. Semantically the same as
    /// [`reference::key_diff::Running`](crate::reference::key_diff::Running).
    pub cached_norms: bool,
}

impl Policy {
    /// Lowest norm, nothing protected, every layer compressed.
    #[must_use]
    pub const fn new(budget: Budget) -> Self {
        Self {
            budget,
            score: Score::KeyNorm,
            direction: Direction::Lowest,
            sinks: 0,
            recent: 0,
            recent_share: None,
            skip_layers: Vec::new(),
            order: Order::Fill,
            selector: Selector::Auto,
            budgets: Vec::new(),
            pool: None,
            min_len: 0,
            segments: false,
            cached_norms: false,
        }
    }

    /// The paper's method: lowest norm, ratio rounded up, nothing protected, layers 0 and 1 left whole.
    #[must_use]
    pub fn paper(keep_ratio: f64) -> Self {
        Self { skip_layers: vec![0, 1], ..Self::new(Budget::keep_ratio(keep_ratio)) }
    }

    /// As NVIDIA kvpress' `KnormPress`: ratio rounded down, nothing protected, no layer left whole.
    #[must_use]
    pub const fn kvpress(keep_ratio: f64) -> Self {
        Self::new(Budget::KeepRatio { keep_ratio, rounding: Rounding::Floor })
    }

    /// Lowest norm with the last 64 and the first 4 tokens protected, layers 0 and 1 left whole: recommended for
    /// decoding, where pure lowest norm fills the cache with old keys.
    #[must_use]
    pub fn safe(keep_ratio: f64) -> Self {
        Self { sinks: 4, recent: 64, ..Self::paper(keep_ratio) }
    }

    /// The paper's streaming rule for decode loops, with the protection of [`Policy::safe`]: a row that has come to `cap`
    /// tokens keeps 98 % of them, by cached norms; shorter rows are left whole. To the letter of the paper, nothing is
    /// protected: `Policy { sinks: 0, recent: 0, ..Policy::streaming(cap) }`.
    #[must_use]
    pub fn streaming(cap: u32) -> Self {
        Self { min_len: cap, cached_norms: true, ..Self::safe(0.98) }
    }

    /// Checks what does not depend on lengths.
    ///
    /// # Errors
    /// A ratio or share that is NaN or outside 0..=1, a budget of 0 tokens, `KeepTokens` below `sinks + recent`, a skipped
    /// layer or an override's layer or head that the shape does not have, `MaxNorm` with another direction than the lowest
    /// or with a pool, any of `MaxNorm`, a pool and cached norms with another score than the key norm, but for cached norms with
    /// [`Score::KeyDiff`].
    pub fn check(&self, shape: &KvShape) -> Result<(), ArgumentError> {
        // Before the share, which may have been made of it.
        self.check_budget(self.budget)?;
        if let Some(got) = self.recent_share.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(ArgumentError::RecentShare { got });
        }
        self.check_score()?;
        for o in &self.budgets {
            self.check_budget(o.budget)?;
            for (argument, range, most) in
                [("budgets.layers", &o.layers, shape.num_layers), ("budgets.heads", &o.heads, shape.num_kv_heads)]
            {
                // A range that ends before it begins is refused by its begin.
                for (got, limit) in [(range.end, most), (range.start, range.end)] {
                    if got > limit {
                        return Err(ArgumentError::TooLarge { argument, got: got.into(), limit: limit.into() });
                    }
                }
            }
        }
        for &layer in &self.skip_layers {
            if layer >= shape.num_layers {
                return Err(ArgumentError::LayerOutOfRange {
                    argument: "skip_layers",
                    layer,
                    num_layers: shape.num_layers,
                });
            }
        }
        Ok(())
    }

    fn check_budget(&self, budget: Budget) -> Result<(), ArgumentError> {
        budget.rule()?;
        let protected = u64::from(self.sinks) + u64::from(self.recent);
        match budget {
            Budget::KeepTokens(keep_tokens) if u64::from(keep_tokens) < protected => {
                Err(ArgumentError::KeepTokensBelowProtected { keep_tokens, protected })
            }
            Budget::MaxNorm(_) if self.direction != Direction::Lowest => {
                Err(ArgumentError::Unsupported { what: "a budget of MaxNorm with a direction other than Lowest" })
            }
            Budget::MaxNorm(_) if self.score != Score::KeyNorm => {
                Err(ArgumentError::Unsupported { what: "budget MaxNorm with a score other than KeyNorm" })
            }
            Budget::MaxNorm(_) if self.pool.is_some() => {
                Err(ArgumentError::Unsupported { what: "a budget of MaxNorm with a pool" })
            }
            _ => Ok(()),
        }
    }

    /// The budget of a row: that of the last override that holds it, else the policy's.
    #[must_use]
    pub fn budget_of(&self, layer: u32, head: u32) -> Budget {
        let holds = |o: &&BudgetOverride| o.layers.contains(&layer) && o.heads.contains(&head);
        self.budgets.iter().rev().find(holds).map_or(self.budget, |o| o.budget)
    }

    /// Whether a budget counts the keys up to a limit, which only the select stage's own histogram does.
    pub(crate) fn has_norm_limit(&self) -> bool {
        let is_limit = |budget: &Budget| matches!(budget, Budget::MaxNorm(_));
        is_limit(&self.budget) || self.budgets.iter().any(|o| is_limit(&o.budget))
    }

    /// Whether what comes before the selection may count first digits: nothing changes order keys after it, or counts others.
    pub(crate) fn may_fuse(&self) -> bool {
        !self.segments && !self.has_norm_limit()
    }

    pub(crate) fn rule_of(&self, layer: u32, head: u32) -> Result<BudgetRule, ArgumentError> {
        Ok(BudgetRule { min_len: self.min_len, ..self.budget_of(layer, head).rule()? })
    }

    /// Layers that are compressed, ascending.
    #[must_use]
    pub fn compressed_layers(&self, num_layers: u32) -> Vec<u32> {
        (0..num_layers).filter(|l| !self.skip_layers.contains(l)).collect()
    }
}
