//! The CPU twins of scores, budgets and segments against naive definitions: what `reference.rs` leaves out.

use std::cmp::Ordering;

use keynorm::reference::budget::{distances, head_budgets};
use keynorm::reference::key_norm::{self, NAN_ORDER_KEY};
use keynorm::reference::value_key_ratio::squared_ratio;
use keynorm::reference::{CacheRow, external, rotate};
use keynorm::{Budget, Direction, Dtype, ExternalScore, Policy, Pool, Segment, TensorSpec};
use proptest::prelude::*;

const SPEC: TensorSpec = TensorSpec::new(Dtype::F32, 16);

fn bytes(elements: &[f32]) -> Vec<u8> {
    elements.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn exact_square(elements: &[f32]) -> f64 {
    elements.iter().map(|&x| f64::from(x).powi(2)).sum()
}

fn elements() -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-1.0_f32..1.0, 16), -20..20_i32)
        .prop_map(|(x, e)| x.iter().map(|x| x * 2.0_f32.powi(e)).collect())
}

/// Few keys, so that many are equal.
fn order_keys(max_len: usize) -> impl Strategy<Value = Vec<u32>> {
    let key = prop_oneof![2 => Just(0), 6 => 1_u32..30, 4 => 0x3f00_0000_u32..0x4200_0000, 1 => Just(NAN_ORDER_KEY)];
    prop::collection::vec(key, 1..max_len)
}

/// As IEEE 754 orders numbers, both zeros equal.
fn is_before(direction: Direction, a: f32, b: f32) -> bool {
    let order = a.partial_cmp(&b).expect("numbers");
    order == if direction == Direction::Highest { Ordering::Greater } else { Ordering::Less }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ratios_are_those_of_the_norms(key in elements(), value in elements()) {
        let exact = exact_square(&value) / exact_square(&key);
        prop_assume!(exact_square(&key) > 0.0);
        let got = f64::from(squared_ratio(&SPEC, &bytes(&key), &SPEC, &bytes(&value)).expect("numbers"));
        prop_assert!((got / exact - 1.0).abs() < 2.0_f64.powi(-18) || exact == 0.0 && got == 0.0, "{got} for {exact}");
    }

    /// Integers, whose squares and sums f32 holds, and limits that are no square root of one.
    #[test]
    fn norm_limits_keep_the_keys_within(keys in prop::collection::vec(prop::collection::vec(-20_i8..20, 16), 1..40), limit in 0.0_f32..90.0) {
        let keys: Vec<Vec<f32>> = keys.iter().map(|k| k.iter().map(|&x| x.into()).collect()).collect();
        let within = keys.iter().filter(|k| exact_square(k) <= f64::from(limit).powi(2)).count();
        let order_key = |k: &Vec<f32>| key_norm::order_key(Direction::Lowest, key_norm::squared_norm(&SPEC, &bytes(k)), 0, 0, 0);
        let budgets = head_budgets(&Policy::new(Budget::MaxNorm(limit)), 0, &[keys.iter().map(order_key).collect()]);
        prop_assert_eq!(budgets.expect("a sound limit")[0].tokens as usize, within.max(1));
    }

    /// As a user writes a share: a decimal.
    #[test]
    fn shares_are_exact_products(hundredths in 0_u64..=100, recent in 0_u32..3000, len in 0_u32..=1 << 20) {
        let share: f64 = format!("{hundredths}e-2").parse().expect("a decimal");
        let policy = Policy { recent, recent_share: Some(share), ..Policy::paper(0.5) };
        prop_assert_eq!(u64::from(policy.recent_of(len)), (u64::from(len) * hundredths / 100).min(recent.into()));
    }

    /// The lowest of what the heads do not keep anyway, the lower head first; nothing that stays is higher than what goes.
    #[test]
    fn pools_keep_the_lowest_distances(
        heads in prop::collection::vec(order_keys(40), 1..5), min_tokens in 0_u32..12, keep_ratio in 0.0..=1.0,
    ) {
        let policy = Policy { pool: Some(Pool { min_tokens }), ..Policy::new(Budget::keep_ratio(keep_ratio)) };
        let budgets = head_budgets(&policy, 0, &heads).expect("a sound policy");
        let asked: usize = heads.iter().map(|keys| {
            let len = u32::try_from(keys.len()).expect("few");
            Budget::keep_ratio(keep_ratio).tokens(len, 0).expect("a sound ratio") as usize * usize::from(keep_ratio > 0.0)
        }).sum();
        let least: Vec<usize> = heads.iter().map(|keys| {
            keys.len().min(keys.iter().filter(|&&k| k == 0).count().max(min_tokens as usize).max(1))
        }).collect();
        let kept: Vec<usize> = budgets.iter().map(|b| b.tokens as usize).collect();
        prop_assert_eq!(kept.iter().sum::<usize>(), asked.max(least.iter().sum()), "as many as the heads' budgets add up to");
        prop_assert!(budgets.iter().all(|b| b.raised == (asked < least.iter().sum())));
        let (mut highest_kept, mut lowest_left) = ((0, 0), (u32::MAX, usize::MAX));
        for (head, keys) in heads.iter().enumerate() {
            let mut sorted = distances(keys);
            sorted.sort_unstable();
            prop_assert!(kept[head] >= least[head] && kept[head] <= keys.len());
            if kept[head] > least[head] {
                highest_kept = highest_kept.max((sorted[kept[head] - 1], head));
            }
            if kept[head] < keys.len() {
                lowest_left = lowest_left.min((sorted[kept[head]], head));
            }
        }
        prop_assert!(highest_kept <= lowest_left, "{highest_kept:?} stays and {lowest_left:?} goes");
    }

    /// Within a head distances order tokens as their keys do, and a key at the median is at one point in every head.
    #[test]
    fn distances_keep_the_order(keys in order_keys(60)) {
        let distances = distances(&keys);
        let is_number = |i: &usize| keys[*i] != NAN_ORDER_KEY;
        for a in (0..keys.len()).filter(is_number) {
            for b in (0..keys.len()).filter(is_number) {
                prop_assert_eq!(keys[a].cmp(&keys[b]), distances[a].cmp(&distances[b]));
            }
        }
        let mut unprotected: Vec<u32> = keys.iter().copied().filter(|&k| k != 0).collect();
        unprotected.sort_unstable();
        if let Some(&median) = unprotected.get(unprotected.len() / 2).filter(|&&k| k != NAN_ORDER_KEY) {
            let at = keys.iter().position(|&k| k == median).expect("a key");
            prop_assert_eq!(distances[at], 0x8000_0000);
        }
    }

    #[test]
    fn segments_reserve_their_lowest(
        keys in order_keys(60), from in 0_u32..50, len in 0_u32..50, min_tokens in 0_u32..30, dropped in 0_u32..30,
    ) {
        let count = u32::try_from(keys.len()).expect("few");
        let row = CacheRow { len: count, num_seen: count + dropped, positions: Vec::new() };
        let segment = Segment { positions: from..from + len, min_tokens };
        let mut reserved = keys.clone();
        key_norm::reserve(&mut reserved, &row, &[segment]);
        // Nothing is stored, so slots count back from what was seen.
        let is_member = |slot: &usize| (from..from + len).contains(&(u32::try_from(*slot).expect("few") + dropped));
        let (members, others): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(is_member);
        prop_assert!(others.iter().all(|&slot| reserved[slot] == keys[slot]), "tokens of other positions");
        let quota = members.len().min(min_tokens as usize);
        let was_lower = |a: usize, b: usize| (keys[a], a) < (keys[b], b);
        for &slot in &members {
            let rank = members.iter().filter(|&&other| was_lower(other, slot)).count();
            prop_assert_eq!(reserved[slot], if rank < quota { 0 } else { keys[slot] }, "slot {}", slot);
        }
    }

    #[test]
    fn scores_of_the_callers_are_ordered_as_numbers(a in any::<f32>(), b in any::<f32>(), highest in any::<bool>()) {
        let direction = if highest { Direction::Highest } else { Direction::Lowest };
        let key = |x: f32| external::order_key(ExternalScore::F32, direction, x.to_bits());
        let signs = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE / 2.0, -f32::MIN_POSITIVE / 2.0];
        for (a, b) in [a, b].into_iter().chain(signs).flat_map(|a| [a, b].into_iter().chain(signs).map(move |b| (a, b))) {
            if a.is_nan() || b.is_nan() {
                prop_assert_eq!(key(f32::NAN), NAN_ORDER_KEY);
                continue;
            }
            prop_assert_eq!(key(a) < key(b), is_before(direction, a, b), "{} and {}", a, b);
            prop_assert!(key(a) > 0 && key(a) < NAN_ORDER_KEY, "no score protects, none is taken for NaN");
        }
    }

    #[test]
    fn order_keys_of_the_callers_are_theirs(word in any::<u32>()) {
        let key = |direction| external::order_key(ExternalScore::OrderKeys, direction, word);
        prop_assert_eq!(key(Direction::Lowest), word.min(0xffff_fffe));
        let highest = key(Direction::Highest);
        prop_assert_eq!(highest == 0, word == 0, "0 protects in every direction");
        prop_assert!(word == 0 || highest == u32::MAX - word.min(0xffff_fffe), "else the order turns");
    }

    /// Rows of one sequence end level; the longest begins at 0.
    #[test]
    fn renumbered_rows_end_level(lens in prop::collection::vec(0_u32..90, 1..5)) {
        let row = |&len: &u32| CacheRow { len, num_seen: 500, positions: (0..len).map(|p| 3 * p).collect() };
        let mut rows: Vec<CacheRow> = lens.iter().map(row).collect();
        rotate::renumber(&mut rows);
        let longest = lens.iter().copied().max().unwrap_or(0);
        for (row, &len) in rows.iter().zip(&lens) {
            prop_assert_eq!((row.len, row.num_seen), (len, longest));
            prop_assert!((0..len).all(|slot| row.position_of(slot) == longest - len + slot));
        }
    }
}
