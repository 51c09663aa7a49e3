//! Which tokens are kept: the strategies that the commands compare.

use keynorm::{Budget, Direction, Policy, Score};

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
    Strategy { sinks: 4, recent: Recent::Rest, ..strategy("sinks+recent", Direction::Lowest, 0, 0) },
    Strategy { score: Score::KeyDiff, ..strategy("keydiff", Direction::Lowest, 0, 0) },
    // As `Policy::keydiff`.
    Strategy {
        score: Score::KeyDiff,
        recent: Recent::Quarter(64),
        ..strategy("keydiff+sinks+recent", Direction::Lowest, 4, 0)
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
        self.is_random() || self.direction == Direction::Highest
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
