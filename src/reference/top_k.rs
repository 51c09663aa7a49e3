//! Twin of `shaders/radix.wgsl` and `shaders/bitonic.wgsl`: which slots are kept, and where they go.

use super::budget::RowBudget;
use crate::error::ArgumentError;
use crate::policy::{Budget, Order};

/// What a selector finds for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Tokens kept.
    pub budget: u32,
    /// Order key of the last kept.
    pub threshold: u32,
    /// Keys equal to the threshold that are kept: the lowest slots.
    pub num_ties: u32,
    /// The budget was raised above what the policy asked for.
    pub raised: bool,
    /// For each slot after the compression the slot before it.
    pub sources: Vec<u32>,
}

impl Selection {
    /// Rows that move.
    #[must_use]
    pub fn num_moved(&self) -> usize {
        (0u32..).zip(&self.sources).filter(|&(slot, &source)| source != slot).count()
    }
}

/// Selects by (order key, slot), lowest first: exactly `budget` slots, lower slot first among equals.
///
/// # Errors
/// As [`Budget::tokens`].
pub fn select(order_keys: &[u32], budget: &Budget, order: Order) -> Result<Selection, ArgumentError> {
    Ok(keep(order_keys, super::budget::row_budget(&budget.rule()?, order_keys), order))
}

/// Selects as many slots as a row's budget says; see [`budget`](super::budget).
#[must_use]
pub fn keep(order_keys: &[u32], row_budget: RowBudget, order: Order) -> Selection {
    let RowBudget { tokens: budget, raised } = row_budget;
    let mut sorted: Vec<(u32, u32)> = order_keys.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    sorted.truncate(budget as usize);
    let threshold = sorted.last().map_or(0, |k| k.0);
    let num_ties = sorted.iter().filter(|k| k.0 == threshold).count();
    let mut kept: Vec<u32> = sorted.iter().map(|k| k.1).collect();
    kept.sort_unstable();
    let sources = match order {
        Order::Positional => kept,
        Order::Fill => fill(&kept, budget),
    };
    Selection { budget, threshold, num_ties: u32::try_from(num_ties).unwrap_or(u32::MAX), raised, sources }
}

/// Kept slots below the budget stay; the j-th kept slot at or beyond it goes to the j-th hole.
fn fill(kept: &[u32], budget: u32) -> Vec<u32> {
    let mut movers = kept.iter().copied().filter(|&s| s >= budget);
    (0..budget)
        .map(|slot| if kept.binary_search(&slot).is_ok() { slot } else { movers.next().unwrap_or(slot) })
        .collect()
}
