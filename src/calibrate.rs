//! Policies that are fitted to a model: which score, window and budget each layer gets, from the attention it loses.

use crate::criterion::Score;
use crate::diagnose::AttentionLoss;
use crate::error::ArgumentError;
use crate::policy::{Budget, BudgetOverride, Direction, Policy};

/// What one layer is compressed by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerChoice {
    /// As [`Policy::score`].
    pub score: Score,
    /// As [`Policy::direction`].
    #[cfg_attr(feature = "serde", serde(default))]
    pub direction: Direction,
    /// As [`Policy::sinks`].
    pub sinks: u32,
    /// As [`Policy::recent`].
    pub recent: u32,
    /// As [`Policy::recent_share`].
    pub recent_share: Option<f64>,
    /// Share of each row that is kept, 0 to 1; 1 leaves the layer whole.
    pub keep_ratio: f64,
}

impl LayerChoice {
    /// The score and window of a policy.
    #[must_use]
    pub const fn of(policy: &Policy) -> Self {
        let Policy { score, direction, sinks, recent, recent_share, .. } = *policy;
        Self { score, direction, sinks, recent, recent_share, keep_ratio: 1.0 }
    }

    /// The policy of this score, window and budget, for every layer.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let Self { score, direction, sinks, recent, recent_share, keep_ratio } = *self;
        Policy { score, direction, sinks, recent, recent_share, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
    }

    fn same_but_budget(&self, other: &Self) -> bool {
        Self { keep_ratio: 1.0, ..*self } == Self { keep_ratio: 1.0, ..*other }
    }
}

/// A choice for every layer of a model. With feature `serde` it is saved and loaded in any of serde's formats.
///
/// # Example
/// ```
/// use keynorm::{Budget, Calibration, LayerChoice, Policy};
/// let norm = LayerChoice { keep_ratio: 0.4, ..LayerChoice::of(&Policy::safe(0.5)) };
/// let diff = LayerChoice { keep_ratio: 0.6, ..LayerChoice::of(&Policy::keydiff(Budget::keep_ratio(0.5))) };
/// let whole = LayerChoice { keep_ratio: 1.0, ..norm };
/// let policies = Calibration { layers: vec![whole, norm, diff] }.policies(8)?;
/// assert_eq!(policies.len(), 2);
/// assert_eq!(policies[0].skip_layers, [0, 2]);
/// assert_eq!(policies[1].skip_layers, [0, 1]);
/// # Ok::<(), keynorm::ArgumentError>(())
/// ```
/// Saved as JSON and loaded as policies:
/// ```
/// # #[cfg(feature = "serde")] {
/// use keynorm::{Budget, Calibration, LayerChoice, Policy};
/// let diff = LayerChoice { keep_ratio: 0.6, ..LayerChoice::of(&Policy::keydiff(Budget::keep_ratio(0.5))) };
/// let path = std::env::temp_dir().join(format!("calibration-{}.json", std::process::id()));
/// std::fs::write(&path, serde_json::to_string(&Calibration { layers: vec![diff; 4] })?)?;
///
/// let loaded: Calibration = serde_json::from_slice(&std::fs::read(&path)?)?;
/// # std::fs::remove_file(&path)?;
/// assert_eq!(loaded.policies(8)?[0].budget_of(3, 7), Budget::keep_ratio(0.6));
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Calibration {
    /// One choice a layer.
    pub layers: Vec<LayerChoice>,
}

/// What one way to compress a layer loses: see [`Calibration::fit`].
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Score and window; its keep ratio is not looked at.
    pub choice: LayerChoice,
    /// What is lost at each of the keep ratios, ascending; infinite where it cannot be had. Attention by
    /// [`Candidate::new`], or a caller's own measure, if it compares across layers. On SmolLM2-135M the squared error of the
    /// attention's output, over the square of the residual that it is added to, chose better than attention: perplexity and
    /// passkeys are in `examples/smollm2/README.md`.
    pub lost: Vec<f64>,
}

impl Candidate {
    /// The mean over queries and heads of the attention lost at each keep ratio. Rows may differ in length. Infinite where
    /// the choice protects more tokens than a ratio keeps, since the budget would be raised for them, and where a ratio is not
    /// from 0 to 1, or there are no losses.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "tokens of a row")]
    pub fn new(choice: LayerChoice, keep_ratios: &[f64], losses: &[AttentionLoss]) -> Self {
        let policy = choice.policy();
        let lost_at = |loss: &AttentionLoss, ratio: f64| {
            let len = loss.lost.len().saturating_sub(1) as u32;
            let Ok(kept) = Budget::keep_ratio(ratio).tokens(len, 0) else { return f64::INFINITY };
            let is_raised = policy.sinks.saturating_add(policy.recent_of(len)) > kept && kept < len;
            if is_raised { f64::INFINITY } else { loss.lost_at(kept as usize) }
        };
        let mean = |ratio: f64| match losses.len() {
            0 => f64::INFINITY,
            count => losses.iter().map(|l| lost_at(l, ratio)).sum::<f64>() / count as f64,
        };
        Self { choice, lost: keep_ratios.iter().map(|&ratio| mean(ratio)).collect() }
    }
}

impl Calibration {
    /// Fits a choice to each layer: of its candidates the one that loses least, at a keep ratio from `keep_ratios`
    /// (ascending), so that the mean over the layers is at most `mean_keep_ratio` and the attention lost in all is small. It
    /// starts from the lowest ratio everywhere and raises, again and again, the layer that gains most for what it takes.
    ///
    /// # Errors
    /// No layer or keep ratio; a layer without candidates, or a candidate with another number of losses than ratios or one
    /// that is not a number; a ratio outside 0..=1 or below the one before it, or a mean below the lowest.
    pub fn fit(layers: &[Vec<Candidate>], keep_ratios: &[f64], mean_keep_ratio: f64) -> Result<Self, ArgumentError> {
        check(layers, keep_ratios, mean_keep_ratio)?;
        // What a layer loses at each ratio, by the candidate that is best there.
        let best = |candidates: &Vec<Candidate>, at: usize| {
            let least = candidates.iter().min_by(|a, b| a.lost[at].total_cmp(&b.lost[at]));
            least.map(|c| (c.lost[at], c.choice)).unwrap_or((0.0, candidates[0].choice))
        };
        let mut at = vec![0; layers.len()];
        #[expect(clippy::cast_precision_loss, reason = "layers of a model")]
        let mut left = (mean_keep_ratio - keep_ratios[0]) * layers.len() as f64 + 1e-9;
        loop {
            let mut chosen: Option<(f64, usize, usize)> = None;
            for (layer, candidates) in layers.iter().enumerate() {
                for to in at[layer] + 1..keep_ratios.len() {
                    let cost = keep_ratios[to] - keep_ratios[at[layer]];
                    let gain = (best(candidates, at[layer]).0 - best(candidates, to).0) / cost.max(f64::MIN_POSITIVE);
                    // Not a number where both are infinite.
                    if cost <= left && gain > chosen.map_or(0.0, |(most, ..)| most) {
                        chosen = Some((gain, layer, to));
                    }
                }
            }
            let Some((_, layer, to)) = chosen else { break };
            left -= keep_ratios[to] - keep_ratios[at[layer]];
            at[layer] = to;
        }
        let choose = |(candidates, at): (&Vec<Candidate>, usize)| LayerChoice {
            keep_ratio: keep_ratios[at],
            ..best(candidates, at).1
        };
        Ok(Self { layers: layers.iter().zip(at).map(choose).collect() })
    }

    /// The policies that carry it out, for caches of so many KV heads: one for each score and window, with the other layers
    /// left whole and a budget a layer. Plan each for the shape of the whole cache, bind each with a workspace of its own and
    /// all to one state, and record one after the other; [`Bound::record_append`](crate::Bound::record_append) counts for every
    /// layer, so that one of them records it. Layers and heads beyond those keep every token. A [`Schedule`](crate::Schedule)
    /// follows one plan alone.
    ///
    /// # Errors
    /// A keep ratio that is NaN or outside 0..=1.
    pub fn policies(&self, num_kv_heads: u32) -> Result<Vec<Policy>, ArgumentError> {
        let mut policies: Vec<(LayerChoice, Policy)> = Vec::new();
        for (layer, choice) in (0..).zip(&self.layers) {
            let budget = Budget::keep_ratio(choice.keep_ratio);
            budget.rule()?;
            if choice.keep_ratio >= 1.0 {
                continue;
            }
            let at = policies.iter().position(|(c, _)| c.same_but_budget(choice)).unwrap_or(policies.len());
            if at == policies.len() {
                // The budget of what the calibration does not know.
                policies.push((*choice, Policy { budget: Budget::keep_ratio(1.0), ..choice.policy() }));
            }
            policies[at].1.budgets.push(BudgetOverride { layers: layer..layer + 1, heads: 0..num_kv_heads, budget });
        }
        for (_, policy) in &mut policies {
            let is_in = |layer: u32| policy.budgets.iter().any(|o| o.layers.start == layer);
            policy.skip_layers = (0..).zip(&self.layers).map(|(layer, _)| layer).filter(|&l| !is_in(l)).collect();
        }
        Ok(policies.into_iter().map(|p| p.1).collect())
    }
}

fn check(layers: &[Vec<Candidate>], keep_ratios: &[f64], mean_keep_ratio: f64) -> Result<(), ArgumentError> {
    for (argument, is_empty) in [("layers", layers.is_empty()), ("keep_ratios", keep_ratios.is_empty())] {
        if is_empty {
            return Err(ArgumentError::ZeroDimension { argument });
        }
    }
    for got in keep_ratios.iter().copied().chain([mean_keep_ratio]) {
        Budget::keep_ratio(got).rule()?;
    }
    let descent = keep_ratios.windows(2).find(|pair| pair[1] < pair[0]).map(|pair| ("keep_ratios", pair[1], pair[0]));
    let mean = (mean_keep_ratio < keep_ratios[0]).then_some(("mean_keep_ratio", mean_keep_ratio, keep_ratios[0]));
    if let Some((argument, got, least)) = descent.or(mean) {
        return Err(ArgumentError::KeepRatioTooLow { argument, got, least });
    }
    for candidates in layers {
        if candidates.is_empty() {
            return Err(ArgumentError::ZeroDimension { argument: "candidates" });
        }
        for candidate in candidates {
            crate::state::check_count("lost", candidate.lost.len(), keep_ratios.len())?;
            if candidate.lost.iter().any(|lost| lost.is_nan()) {
                return Err(ArgumentError::Unsupported {
                    what: "a loss that is not a number (infinity: it cannot be had)",
                });
            }
        }
    }
    Ok(())
}
