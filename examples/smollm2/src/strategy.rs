//! Which tokens are kept: the strategies that the commands compare.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use keynorm::{Budget, Calibration, Direction, Policy, Score};
use serde::{Deserialize, Serialize};

/// A way to choose, by name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strategy {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What ranks the tokens.
    pub score: Score,
    /// Direction without a seed; `Random` takes the run's.
    pub direction: Direction,
    /// First tokens that are always kept.
    pub sinks: u32,
    /// The last tokens that are always kept.
    pub recent: Recent,
}

/// A window of last tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recent {
    /// As many tokens.
    Tokens(u32),
    /// As many, but at most a quarter of the budget.
    Quarter(u32),
    /// All of the budget that the sinks leave: StreamingLLM's choice, without its renumbering.
    Rest,
}

const fn strategy(name: &'static str, direction: Direction, sinks: u32, recent: u32) -> Strategy {
    Strategy { name, score: Score::KeyNorm, direction, sinks, recent: Recent::Tokens(recent) }
}

/// All strategies. A new one is a line here.
pub const STRATEGIES: &[Strategy] = &[
    strategy("lowest", Direction::Lowest, 0, 0),
    strategy("lowest+recent", Direction::Lowest, 0, 64),
    strategy("lowest+sinks+recent", Direction::Lowest, 4, 64),
    Strategy { recent: Recent::Quarter(64), ..strategy("lowest+sinks+quarter", Direction::Lowest, 4, 0) },
    Strategy { sinks: 4, recent: Recent::Rest, ..strategy("sinks+recent", Direction::Lowest, 0, 0) },
    Strategy { score: Score::KeyDiff, ..strategy("keydiff", Direction::Lowest, 0, 0) },
    // As `Policy::keydiff`.
    Strategy {
        score: Score::KeyDiff,
        recent: Recent::Quarter(64),
        ..strategy("keydiff+sinks+recent", Direction::Lowest, 4, 0)
    },
    Strategy { score: Score::Centroid, ..strategy("centroid", Direction::Highest, 0, 0) },
    Strategy {
        score: Score::Centroid,
        recent: Recent::Quarter(64),
        ..strategy("centroid+sinks+recent", Direction::Highest, 4, 0)
    },
    Strategy { score: Score::ValueKeyRatio, ..strategy("value-key-ratio", Direction::Highest, 0, 0) },
    Strategy {
        score: Score::ValueKeyRatio,
        recent: Recent::Quarter(64),
        ..strategy("value-key-ratio+sinks+recent", Direction::Highest, 4, 0)
    },
    strategy("random", Direction::Random { seed: 0 }, 0, 0),
    strategy("random+sinks+recent", Direction::Random { seed: 0 }, 4, 64),
    strategy("highest", Direction::Highest, 0, 0),
];

impl Strategy {
    /// By name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        STRATEGIES.iter().find(|s| s.name == name)
    }

    /// Whether the seed decides.
    #[must_use]
    pub const fn is_random(&self) -> bool {
        matches!(self.direction, Direction::Random { .. })
    }

    /// Whether it is there to compare with: chance, and the opposite.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.is_random() || self.score == Score::KeyNorm && self.direction == Direction::Highest
    }

    /// The policy for rows of `len` tokens. The protected tokens count inside the budget, which is never raised for them.
    #[must_use]
    pub fn policy(&self, budget: Budget, len: u32, seed: u64, skip_layers: &[u32]) -> Policy {
        let tokens = budget.tokens(len, 0).unwrap_or(len);
        let sinks = self.sinks.min(tokens);
        let recent = match self.recent {
            Recent::Tokens(recent) => recent.min(tokens - sinks),
            Recent::Quarter(recent) => recent.min(tokens / 4),
            Recent::Rest => tokens - sinks,
        };
        let direction = if self.is_random() { Direction::Random { seed } } else { self.direction };
        Policy { score: self.score, direction, sinks, recent, skip_layers: skip_layers.to_vec(), ..Policy::new(budget) }
    }
}

/// A calibration for a keep ratio, as `calibrate` writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Calibrated {
    /// Mean keep ratio of the layers that are not whole.
    pub keep_ratio: f64,
    /// The choices.
    pub calibration: Calibration,
}

/// The part of `calibration.json` that is read back.
#[derive(Debug, Deserialize)]
struct CalibrationFile {
    calibrations: Vec<Calibrated>,
}

/// One way to compress that a command compares with others.
#[derive(Debug, Clone)]
pub enum Method {
    /// One policy for every layer.
    Uniform(&'static Strategy),
    /// A policy for each group of layers, by keep ratio.
    Calibrated(Arc<[Calibrated]>),
}

/// The name of [`Method::Calibrated`].
const CALIBRATED: &str = "calibrated";

impl Method {
    /// Methods by name. `file` is what `calibrated` reads.
    ///
    /// # Errors
    /// No such name; `calibrated` without a file, or with one that cannot be read.
    pub fn find<S: AsRef<str>>(names: &[S], file: Option<&Path>) -> Result<Vec<Self>> {
        let method = |name: &S| match (name.as_ref(), file) {
            (CALIBRATED, Some(file)) => Self::load(file),
            (CALIBRATED, None) => bail!("strategy {CALIBRATED} needs --calibration, a file that `calibrate` wrote"),
            (name, _) => Ok(Self::Uniform(crate::generate::strategy(name)?)),
        };
        names.iter().map(method).collect()
    }

    fn load(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let read: CalibrationFile = serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?;
        Ok(Self::Calibrated(read.calibrations.into()))
    }

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Uniform(strategy) => strategy.name,
            Self::Calibrated(_) => CALIBRATED,
        }
    }

    /// Whether the seed decides.
    #[must_use]
    pub const fn is_random(&self) -> bool {
        matches!(self, Self::Uniform(strategy) if strategy.is_random())
    }

    /// Whether it is there to compare with.
    #[must_use]
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Uniform(strategy) if strategy.is_control())
    }

    /// The policies for rows of `len` tokens, which no two apply to the same layer.
    ///
    /// # Errors
    /// Of a calibration: a keep ratio that it has not, whole layers or a mean that differ from what it is compared at, another
    /// number of layers than `num_layers`.
    pub fn policies(
        &self,
        keep_ratio: f64,
        len: u32,
        seed: u64,
        skip_layers: &[u32],
        (num_layers, num_kv_heads): (u32, u32),
    ) -> Result<Vec<Policy>> {
        let all = match self {
            Self::Uniform(strategy) => {
                return Ok(vec![strategy.policy(Budget::keep_ratio(keep_ratio), len, seed, skip_layers)]);
            }
            Self::Calibrated(all) => all,
        };
        let fits = |c: &&Calibrated| (c.keep_ratio - keep_ratio).abs() < 1e-9;
        let ratios = || all.iter().map(|c| c.keep_ratio).collect::<Vec<_>>();
        let found = all.iter().find(fits);
        let calibration = &found
            .with_context(|| format!("no calibration for keep ratio {keep_ratio}, but {:?}", ratios()))?
            .calibration;
        let layers = &calibration.layers;
        ensure!(layers.len() == num_layers as usize, "a calibration of {} layers for {num_layers}", layers.len());
        // The same memory as the methods that it is compared with.
        let compressed = || (0..).zip(layers).filter(|(ix, _)| !skip_layers.contains(ix)).map(|(_, l)| l.keep_ratio);
        let mean = compressed().sum::<f64>() / compressed().count().max(1) as f64;
        let is_whole = skip_layers.iter().all(|&ix| layers[ix as usize].keep_ratio >= 1.0);
        ensure!(is_whole, "the calibration compresses one of the layers {skip_layers:?}");
        ensure!(mean < keep_ratio + 1e-9, "the calibration keeps {mean} of the layers beside {skip_layers:?}");
        Ok(calibration.policies(num_kv_heads)?)
    }
}
