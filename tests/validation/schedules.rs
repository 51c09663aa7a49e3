//! A schedule's bounds against rows that the reference compresses, on random policies and lengths.

use std::sync::OnceLock;

use keynorm::reference::budget::head_budgets;
use keynorm::reference::{CacheRow, top_k};
use keynorm::{ArgumentError, Budget, Compressor, KvShape, Order, Plan, Policy, Rounding, Schedule, Trigger};
use proptest::prelude::*;

use crate::support::{noop, shape};

const CAPACITY: u32 = 96;

#[derive(Debug, Clone)]
struct Step {
    tokens: u32,
    /// Of those since the last compression, tokens that are taken back after it.
    rejected: u32,
    /// Tokens that stay from here on.
    prefix: Option<u32>,
    seed: u64,
}

fn budgets() -> impl Strategy<Value = Budget> {
    let ratio = |rounding| (0.0..1.0).prop_map(move |keep_ratio| Budget::KeepRatio { keep_ratio, rounding });
    prop_oneof![ratio(Rounding::Ceil), ratio(Rounding::Floor), (40u32..60).prop_map(Budget::KeepTokens)]
}

prop_compose! {
    fn policies()(
        budget in budgets(),
        fills in any::<bool>(),
        sinks in 0u32..6,
        recent in 0u32..30,
        recent_share in prop::option::of(0.0..0.6),
        min_len in prop_oneof![Just(0), 1u32..80],
    ) -> Policy {
        let order = if fills { Order::Fill } else { Order::Positional };
        Policy { sinks, recent, recent_share, min_len, order, ..Policy::new(budget) }
    }
}

prop_compose! {
    fn steps()(
        step in (1u32..12, prop_oneof![2 => Just(0), 1 => 1u32..20], prop::option::weighted(0.1, 0u32..40), any::<u64>()),
    ) -> Step {
        Step { tokens: step.0, rejected: step.1, prefix: step.2, seed: step.3 }
    }
}

fn compress(policy: &Policy, row: &mut CacheRow, prefix: u32, seed: u64) {
    let key = |slot: u32| match slot {
        slot if slot < prefix || row.is_protected(policy, slot) => 0,
        slot => (seed.wrapping_mul(2 * u64::from(slot) + 0x9e37_79b9_7f4a_7c15) >> 40) as u32 + 1,
    };
    let keys: Vec<u32> = (0..row.len).map(key).collect();
    let budget = head_budgets(policy, 0, std::slice::from_ref(&keys)).expect("a sound policy")[0];
    row.finish(&top_k::keep(&keys, budget, policy.order));
}

fn plan(policy: &Policy) -> Plan {
    static COMPRESSOR: OnceLock<Compressor> = OnceLock::new();
    let shape = KvShape { batch_size: 1, num_kv_heads: 1, capacity: CAPACITY, ..shape() };
    COMPRESSOR.get_or_init(|| noop().compressor()).plan(&shape, policy).expect("a plan")
}

/// Runs a decode loop until the schedule sees no room; the number of compressions.
fn decode(plan: &Plan, trigger: Trigger, steps: &[Step], is_exact: bool) -> Result<u32, TestCaseError> {
    let policy = plan.policy();
    let mut row = CacheRow::default();
    let mut prefix = 0;
    let mut schedule = Schedule::new(plan, trigger, &[0]).expect("a schedule");
    let (mut compressions, mut since) = (0, 0);
    for step in steps {
        if let Some(tokens) = step.prefix {
            prefix = tokens;
            schedule.set_prefixes(&[prefix]).expect("one sequence");
        }
        let Ok(due) = schedule.append(&[step.tokens]) else { return Ok(compressions) };
        row.append(step.tokens);
        since += step.tokens;
        prop_assert!(row.len <= CAPACITY, "{} tokens", row.len);
        if let Some(due) = due {
            prop_assert!(due.max_len >= row.len, "{} tokens, recorded {}", row.len, due.max_len);
            compress(policy, &mut row, prefix, step.seed);
            (compressions, since) = (compressions + 1, 0);
        }
        let refused = schedule.truncate(&[since + 1]);
        prop_assert!(matches!(refused, Err(ArgumentError::TooLarge { argument: "counts", .. })), "{:?}", refused);
        let rejected = step.rejected.min(since);
        schedule.truncate(&[rejected]).expect("as many as there are");
        row.truncate(rejected);
        since -= rejected;
        let bound = schedule.max_len(0).expect("one sequence");
        prop_assert!(bound >= row.len && (!is_exact || bound == row.len), "{} tokens, bound {bound}", row.len);
    }
    Ok(compressions)
}

fn triggers() -> impl Strategy<Value = Trigger> {
    prop_oneof![(1u32..90).prop_map(Trigger::AtCap), (1u32..40).prop_map(Trigger::Every)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold(policy in policies(), trigger in triggers(), steps in prop::collection::vec(steps(), 1..60)) {
        decode(&plan(&policy), trigger, &steps, false)?;
    }

    /// What is protected is known as long as prefixes stay and windows do not grow.
    #[test]
    fn bounds_are_lengths(policy in policies(), trigger in triggers(), mut steps in prop::collection::vec(steps(), 1..60)) {
        let policy = Policy { recent_share: None, ..policy };
        steps[1..].iter_mut().for_each(|step| step.prefix = None);
        decode(&plan(&policy), trigger, &steps, true)?;
    }
}

/// The cases above are worth nothing where no compression is due.
#[test]
fn loops_compress() {
    let step = Step { tokens: 1, rejected: 0, prefix: None, seed: 7 };
    let compressions = decode(&plan(&Policy::new(Budget::keep_ratio(0.5))), Trigger::AtCap(64), &vec![step; 300], true);
    assert_eq!(compressions.expect("bounds that hold"), 8, "64, and every 32 tokens from there");
}
