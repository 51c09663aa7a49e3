//! Twin of the budgets in `shaders/shared/row_rule.wgsl` and of `shaders/pool.wgsl`: how many tokens each row keeps.

use super::key_norm::NAN_ORDER_KEY;
use crate::error::ArgumentError;
use crate::policy::{BudgetRule, Policy, Pool};

/// What a row keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBudget {
    /// Tokens kept.
    pub tokens: u32,
    /// More than the policy asked for, since tokens are protected or the row must keep one.
    pub raised: bool,
}

fn count(order_keys: &[u32], is_counted: impl Fn(u32) -> bool) -> u32 {
    u32::try_from(order_keys.iter().filter(|&&k| is_counted(k)).count()).unwrap_or(u32::MAX)
}

pub(crate) fn row_budget(rule: &BudgetRule, order_keys: &[u32]) -> RowBudget {
    let len = count(order_keys, |_| true);
    let num_protected = count(order_keys, |k| k == 0);
    let num_within = count(order_keys, |k| k <= rule.key_limit);
    RowBudget {
        tokens: rule.tokens(len, num_protected, num_within),
        raised: rule.asked(len, num_within) < len.min(num_protected.max(1)),
    }
}

/// Budgets of the heads of one sequence and layer, by their order keys, one list a head.
///
/// # Errors
/// As [`Policy::check`] for the budgets.
pub fn head_budgets(policy: &Policy, layer: u32, heads: &[Vec<u32>]) -> Result<Vec<RowBudget>, ArgumentError> {
    let rules = (0..).zip(heads).map(|(head, _)| policy.rule_of(layer, head)).collect::<Result<Vec<_>, _>>()?;
    match policy.pool {
        None => Ok(rules.iter().zip(heads).map(|(rule, keys)| row_budget(rule, keys)).collect()),
        Some(pool) => Ok(pooled(pool, &rules, heads)),
    }
}

/// The highest order key of a finite or infinite norm.
const MAX_SCORE: u32 = 0x7f80_0001;

/// Order keys as distances from the median of the unprotected ones, in bits of f32: 0 for protected tokens, and NaN last.
#[must_use]
pub fn distances(order_keys: &[u32]) -> Vec<u32> {
    let mut unprotected: Vec<u32> = order_keys.iter().copied().filter(|&k| k != 0).collect();
    unprotected.sort_unstable();
    let median = unprotected.get(unprotected.len() / 2).copied().unwrap_or(0).min(MAX_SCORE);
    let distance = |&key: &u32| match key {
        0 => 0,
        NAN_ORDER_KEY.. => NAN_ORDER_KEY,
        key => key.min(MAX_SCORE) + (0x8000_0000 - median),
    };
    order_keys.iter().map(distance).collect()
}

/// Every head keeps its protected tokens and its own least number; what is left of the sum of the heads' budgets goes to
/// the lowest distances, lower head first among equals.
fn pooled(pool: Pool, rules: &[BudgetRule], heads: &[Vec<u32>]) -> Vec<RowBudget> {
    let lens: Vec<u32> = heads.iter().map(|keys| count(keys, |_| true)).collect();
    let least = |((keys, &len), rule): ((&Vec<u32>, &u32), &BudgetRule)| match len {
        len if len < rule.min_len => len,
        len => len.min(count(keys, |k| k == 0).max(pool.min_tokens).max(1)),
    };
    let mut budgets: Vec<u32> = heads.iter().zip(&lens).zip(rules).map(least).collect();
    let asked: u32 = rules.iter().zip(&lens).map(|(rule, &len)| len.min(rule.asked(len, 0))).sum();
    let raised = asked < budgets.iter().sum();
    let mut left = asked.saturating_sub(budgets.iter().sum());
    let mut others: Vec<(u32, usize)> = Vec::new();
    for (head, keys) in heads.iter().enumerate() {
        let mut sorted = distances(keys);
        sorted.sort_unstable();
        others.extend(sorted[budgets[head] as usize..].iter().map(|&distance| (distance, head)));
    }
    others.sort_unstable();
    for &(_, head) in &others {
        if left > 0 {
            budgets[head] += 1;
            left -= 1;
        }
    }
    budgets.into_iter().map(|tokens| RowBudget { tokens, raised }).collect()
}
