//! By what tokens are compared, and what a policy says of it. No GPU here.

use crate::error::ArgumentError;
use crate::policy::{Budget, BudgetRule, Direction, Policy, Rounding};

/// By what tokens are compared. [`Direction`] says which end of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Score {
    /// L2 norm of the key: the paper's method (Devoto et al., arXiv 2406.11430). Reads the keys once.
    #[default]
    KeyNorm,
    /// Cosine of the key with the mean of the row's normalised keys (KeyDiff, Park et al., arXiv 2504.15364): the lowest,
    /// least like the others, are kept. Reads the keys twice. Better than the norm in most of what was measured; see
    /// [`Policy::keydiff`]. Semantically the same as [`reference::key_diff::cosines`](crate::reference::key_diff::cosines).
    KeyDiff,
    /// Squared distance of the key to the row's mean key (the score of ManifoldKV, which keeps the highest). Reads the keys
    /// twice. Never better than the norm on SmolLM2-135M, in perplexity or passkeys. Semantically the same as
    /// [`reference::key_diff::distances`](crate::reference::key_diff::distances).
    Centroid,
    /// Ratio of the value's L2 norm to the key's (the token importance of PagedEviction, arXiv 2509.04377, which keeps the
    /// highest). Reads keys and values once. With the first 4 and some recent tokens protected it finds more passkeys on
    /// SmolLM2-135M than the norm, at about the same perplexity; unprotected it drops the first tokens, and the model with them.
    /// Semantically the same as [`reference::value_key_ratio`](crate::reference::value_key_ratio).
    ValueKeyRatio,
    /// The caller's scores, given to [`Plan::bind_with_scores`](crate::Plan::bind_with_scores) or
    /// [`Plan::bind_paged_with_scores`](crate::Plan::bind_paged_with_scores): of attention, for instance.
    /// Neither keys nor values are read. With [`Direction::Random`] no scores are given, and keys are read, since one with a NaN
    /// comes last. Semantically the same as [`reference::external`](crate::reference::external).
    External(ExternalScore),
}

/// What a caller's scores are: one 32-bit word a token. NaN scores come last in every direction and set
/// [`Status::NON_FINITE_KEY`](crate::Status::NON_FINITE_KEY).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ExternalScore {
    /// f32. Selection is fastest for scores from 2⁻²⁸ to 2³⁰, as sums of attention are; the others are as exact.
    #[default]
    F32,
    /// u32 order keys, up to 0xFFFF_FFFE: 0 for a token that must stay, whatever the direction.
    OrderKeys,
}

impl Policy {
    /// [`Score::KeyDiff`] with the first 4 tokens protected and a recent window of at most 64 tokens and at most a quarter
    /// of the budget; layers 0 and 1 left whole. With a keep ratio the quarter is taken of `keep_ratio * len`.
    ///
    /// On SmolLM2-135M it loses less perplexity than the lowest norm, and in most cases finds more passkeys:
    /// `examples/smollm2/README.md`. A fixed window of 64 would take all of a small budget.
    #[must_use]
    pub fn keydiff(budget: Budget) -> Self {
        let (recent, recent_share) = match budget {
            Budget::KeepRatio { keep_ratio, .. } => (64, Some(keep_ratio / 4.0)),
            Budget::KeepTokens(tokens) => (64.min(tokens / 4), None),
            Budget::MaxNorm(_) => (64, None), // which no score but the norm takes
        };
        let sinks = if let Budget::KeepTokens(tokens) = budget { 4.min(tokens - recent) } else { 4 };
        Self { score: Score::KeyDiff, sinks, recent, recent_share, skip_layers: vec![0, 1], ..Self::new(budget) }
    }

    /// Tokens of the recent window of a row of `len` tokens; the GPU computes the same.
    #[must_use]
    pub fn recent_of(&self, len: u32) -> u32 {
        self.recent_share.map_or(self.recent, |share| share_rule(share).asked(len, 0).min(self.recent))
    }

    /// The share as the shaders hold it: times 2⁴⁰; all ones where there is none.
    pub(crate) fn share_bits(&self) -> u64 {
        self.recent_share.map_or(u64::MAX, |share| share_rule(share).ratio)
    }

    /// The score whose kernel runs: at random the norm's, which tells NaN keys.
    pub(crate) fn score_in_use(&self) -> Score {
        if matches!(self.direction, Direction::Random { .. }) { Score::KeyNorm } else { self.score }
    }

    /// Whether the state keeps sums of keys, and scores in place of norms.
    pub(crate) fn caches_sums(&self) -> bool {
        self.cached_norms && self.score_in_use() == Score::KeyDiff
    }

    pub(crate) fn takes_scores(&self) -> bool {
        matches!(self.score_in_use(), Score::External(_))
    }

    pub(crate) fn check_score(&self) -> Result<(), ArgumentError> {
        let unsupported = |what| Err(ArgumentError::Unsupported { what });
        match self.score {
            Score::KeyNorm => Ok(()),
            _ if self.pool.is_some() => unsupported("a pool with a score other than KeyNorm"),
            Score::KeyDiff => Ok(()),
            _ if self.cached_norms => unsupported("cached_norms with a score other than KeyNorm and KeyDiff"),
            _ => Ok(()),
        }
    }
}

fn share_rule(share: f64) -> BudgetRule {
    BudgetRule::ratio(share, Rounding::Floor)
}
