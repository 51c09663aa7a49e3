//! The CPU twins against naive definitions: 64-bit floats, sorts and exact integers.

use std::collections::BTreeSet;

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use keynorm::reference::key_norm::{self, NAN_ORDER_KEY};
use keynorm::reference::rotate::{rotate_key, sine_cosine};
use keynorm::reference::{CacheRow, compact, compress_row, key_diff, top_k};
use keynorm::{Budget, Direction, Dtype, Order, Pairing, Policy, Rope, Rounding, TensorSpec};
use proptest::prelude::*;

const SPEC: TensorSpec = TensorSpec::new(Dtype::F16, 16);

/// Of keys that may be rotated.
fn wide_dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![
        Just(Direction::Lowest),
        Just(Direction::Highest),
        any::<u64>().prop_map(|seed| Direction::Random { seed })
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Fill), Just(Order::Positional)]
}

/// Tokens of a head dimension, a scale each.
fn tokens(max_len: usize) -> impl Strategy<Value = (u32, Vec<Vec<f32>>)> {
    prop::sample::select(vec![16_u32, 24, 64, 80, 128, 200]).prop_flat_map(move |head_dim| {
        let token = (prop::collection::vec(-1.0_f32..1.0, head_dim as usize), -6..6_i32)
            .prop_map(|(x, e)| x.iter().map(|x| x * 2.0_f32.powi(e)).collect::<Vec<_>>());
        (Just(head_dim), prop::collection::vec(token, 1..max_len))
    })
}

/// Tokens of a dtype, cut to a head dimension that it allows.
fn keys(max_len: usize) -> impl Strategy<Value = (Dtype, u32, Vec<Vec<f32>>)> {
    let f8 = prop_oneof![Just(Dtype::F8E4M3), Just(Dtype::F8E5M2)];
    let of_wide = (wide_dtype(), tokens(max_len)).prop_map(|(dtype, (head_dim, tokens))| (dtype, head_dim, tokens));
    let of_f8 = (f8, tokens(max_len)).prop_map(|(dtype, (head_dim, mut tokens))| {
        let head_dim = head_dim / 16 * 16;
        tokens.iter_mut().for_each(|t| t.truncate(head_dim as usize));
        (dtype, head_dim, tokens)
    });
    prop_oneof![3 => of_wide, 2 => of_f8]
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F8E4M3 => values.iter().map(|&v| F8E4M3::from_f32(v).to_bits()).collect(),
        Dtype::F8E5M2 if values.contains(&f32::INFINITY) => vec![0x7c; values.len()], // which the crate saturates
        Dtype::F8E5M2 => values.iter().map(|&v| F8E5M2::from_f32(v).to_bits()).collect(),
        other => panic!("{other:?} has no elements of its own"),
    }
}

fn doubles(dtype: Dtype, key: &[u8]) -> Vec<f64> {
    let halves = key.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => key.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")).into()).collect(),
        Dtype::F16 => halves.map(|h| f16::from_bits(h).to_f64()).collect(),
        Dtype::Bf16 => halves.map(|h| bf16::from_bits(h).to_f64()).collect(),
        Dtype::F8E4M3 => key.iter().map(|&b| F8E4M3::from_bits(b).to_f64()).collect(),
        Dtype::F8E5M2 => key.iter().map(|&b| F8E5M2::from_bits(b).to_f64()).collect(),
        other => panic!("{other:?} has no elements of its own"),
    }
}

/// The squared norm of the encoded key, in double precision, in any order.
fn exact_norm(dtype: Dtype, key: &[u8]) -> f64 {
    doubles(dtype, key).iter().map(|x| x * x).sum()
}

fn select(order_keys: &[u32], budget: Budget, order: Order) -> top_k::Selection {
    top_k::select(order_keys, &budget, order).expect("a sound budget")
}

fn set(slots: &[u32]) -> BTreeSet<u32> {
    slots.iter().copied().collect()
}

/// A key whose squared norm is exactly `norm`², for f16.
fn key_of(norm: u16) -> Vec<u8> {
    let mut values = [0.0; 16];
    values[usize::from(norm) % 16] = f32::from(norm);
    encode(Dtype::F16, &values)
}

/// The elements of a quantised row, by the definition of its format.
fn dequantised(dtype: Dtype, row: &[u8]) -> Vec<f64> {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f64();
    let bytes = |scale: f64, b: &[u8]| b.iter().map(|&q| scale * f64::from(q.cast_signed())).collect::<Vec<_>>();
    match dtype {
        Dtype::Q8_0 => row.chunks(34).flat_map(|b| bytes(half(b), &b[2..])).collect(),
        Dtype::Q4_0 => {
            let nibbles = |b: &[u8]| {
                let scale = half(b);
                let (low, high) = (b[2..].iter().map(|q| q & 15), b[2..].iter().map(|q| q >> 4));
                low.chain(high).map(|q| scale * (f64::from(q) - 8.0)).collect::<Vec<_>>()
            };
            row.chunks(18).flat_map(nibbles).collect()
        }
        Dtype::I8Scaled => bytes(f32::from_le_bytes(row[..4].try_into().expect("4 bytes")).into(), &row[4..]),
        other => panic!("{other:?} is not quantised"),
    }
}

/// Each block's sum is exact, so that a norm has one rounding a product and an addition.
#[test]
fn norms_of_quantised_rows_are_those_of_their_elements() {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for (dtype, head_dim) in [(Dtype::Q8_0, 128), (Dtype::Q4_0, 64), (Dtype::I8Scaled, 40), (Dtype::Q8_0, 512)] {
        let spec = TensorSpec::new(dtype, head_dim);
        for _ in 0..100 {
            let mut row: Vec<u8> = (0..spec.row_bytes()).map(|_| byte()).collect();
            let scale = 0.001 + f32::from(byte()) / 1000.0;
            let stride = match dtype {
                Dtype::Q8_0 => 34,
                Dtype::Q4_0 => 18,
                _ => row.len(),
            };
            for block in row.chunks_mut(stride) {
                let bytes = if dtype == Dtype::I8Scaled {
                    scale.to_le_bytes().to_vec()
                } else {
                    f16::from_f32(scale).to_le_bytes().to_vec()
                };
                block[..bytes.len()].copy_from_slice(&bytes);
            }
            let elements = dequantised(dtype, &row);
            assert_eq!(elements.len(), head_dim as usize, "{dtype:?}");
            let exact: f64 = elements.iter().map(|x| x * x).sum();
            let norm = f64::from(key_norm::squared_norm(&spec, &row).expect("no NaN"));
            assert!((norm - exact).abs() <= exact * 8.0 * 2.0_f64.powi(-24), "{dtype:?}: {norm} for {exact}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norm_is_within_rounding_of_the_exact_sum((dtype, head_dim, tokens) in keys(4)) {
        let spec = TensorSpec::new(dtype, head_dim);
        for token in &tokens {
            let key = encode(dtype, token);
            let exact = exact_norm(dtype, &key);
            let norm = f64::from(key_norm::squared_norm(&spec, &key).expect("no NaN"));
            let bound = exact * f64::from(head_dim) * 2.0_f64.powi(-24);
            prop_assert!((norm - exact).abs() <= bound, "{norm} for {exact}");
        }
    }

    #[test]
    fn cosines_and_distances_are_near_those_of_doubles((dtype, head_dim, tokens) in keys(300)) {
        let spec = TensorSpec::new(dtype, head_dim);
        let keys: Vec<u8> = tokens.iter().flat_map(|t| encode(dtype, t)).collect();
        let exact: Vec<Vec<f64>> = keys.chunks_exact(spec.row_bytes() as usize).map(|k| doubles(dtype, k)).collect();
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mean_of = |scale: &dyn Fn(&[f64]) -> f64| {
            let mut mean = vec![0.0; head_dim as usize];
            for key in &exact {
                let scale = scale(key) / exact.len() as f64;
                mean.iter_mut().zip(key).for_each(|(m, e)| *m += e * scale);
            }
            mean
        };
        let direction = mean_of(&|key| if norm(key) == 0.0 { 0.0 } else { 1.0 / norm(key) });
        let centre = mean_of(&|_| 1.0);
        let cosines = key_diff::cosines(&spec, &keys);
        let distances = key_diff::distances(&spec, &keys);
        for (i, key) in exact.iter().enumerate() {
            let scale = norm(key) * norm(&direction);
            let product: f64 = key.iter().zip(&direction).map(|(a, b)| a * b).sum();
            let cosine = f64::from(cosines[i].expect("a finite key"));
            // The direction is rounded to 13 bits and may be short, the sum of many that cancel.
            let bound = 2.0_f64.powi(-12) / norm(&direction).max(1e-9) + 1e-5;
            prop_assert!((cosine - product / scale).abs() <= bound || scale == 0.0, "{cosine} for {}", product / scale);
            let difference: Vec<f64> = key.iter().zip(&centre).map(|(a, b)| a - b).collect();
            let largest = exact.iter().map(|k| norm(k)).fold(0.0, f64::max);
            let distance = f64::from(distances[i].expect("a finite key")).sqrt();
            prop_assert!((distance - norm(&difference)).abs() <= 4e-6 * largest, "{distance}");
        }
    }

    #[test]
    fn rotations_are_near_those_of_doubles(
        (head_dim, tokens) in tokens(3),
        dtype in wide_dtype(),
        interleaved in any::<bool>(),
        (before, after) in (0_u32..1 << 20, 0_u32..1 << 20),
        base in 100.0..1e6_f64,
    ) {
        let spec = TensorSpec::new(dtype, head_dim);
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
        let rope = Rope { pairing, ..Rope::new(head_dim, base) };
        let half = head_dim as usize / 2;
        for token in &tokens {
            let mut key = encode(dtype, token);
            let exact = doubles(dtype, &key);
            rotate_key(&rope, &spec, &mut key, before, after).expect("a sound rope");
            let turned = doubles(dtype, &key);
            for pair in 0..half {
                let [a, b] = if interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + half] };
                let frequency = base.powf(-2.0 * pair as f64 / f64::from(head_dim));
                let (sine, cosine) = ((f64::from(after) - f64::from(before)) * frequency).sin_cos();
                let expected = [exact[a] * cosine - exact[b] * sine, exact[b] * cosine + exact[a] * sine];
                let length = exact[a].hypot(exact[b]);
                for (got, expected) in [turned[a], turned[b]].into_iter().zip(expected) {
                    let digits = match dtype { Dtype::F32 => 24, Dtype::F16 => 11, _ => 8 };
                    let rounding = expected.abs() * 2.0_f64.powi(-digits) + 2.0_f64.powi(-25);
                    let bound = length * 2.0_f64.powi(-21) + if before == after { 0.0 } else { rounding };
                    prop_assert!((got - expected).abs() <= bound, "{got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn sines_and_cosines(phase in any::<u32>()) {
        let (sine, cosine) = sine_cosine(phase);
        let (s, c) = (f64::from(phase) / 2.0_f64.powi(32) * std::f64::consts::TAU).sin_cos();
        let error = (f64::from(sine) - s).abs().max((f64::from(cosine) - c).abs());
        prop_assert!(error < 2.0_f64.powf(-21.9), "{error}");
    }

    /// Scored at once, keys have KeyDiff's cosines; in two parts the first have those of the first part alone.
    #[test]
    fn running_cosines((dtype, head_dim, tokens) in keys(700), cut in 0.0..=1.0) {
        let spec = TensorSpec::new(dtype, head_dim);
        let keys: Vec<u8> = tokens.iter().flat_map(|t| encode(dtype, t)).collect();
        let mut at_once = key_diff::Running::default();
        at_once.update(&spec, &keys);
        prop_assert_eq!(&at_once.cosines, &key_diff::cosines(&spec, &keys));
        let cut = (tokens.len() as f64 * cut) as usize;
        let mut in_two = key_diff::Running::default();
        let first = &keys[..cut * spec.row_bytes() as usize];
        in_two.update(&spec, first);
        prop_assert_eq!(&in_two.cosines, &key_diff::cosines(&spec, first));
        in_two.update(&spec, &keys);
        prop_assert_eq!(&in_two.cosines[..cut], &key_diff::cosines(&spec, first)[..]);
        // New keys are compared with the mean of all, whose sum is rounded to 13 bits and may be short.
        let length = at_once.sum.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>().sqrt() / tokens.len() as f64;
        for (new, whole) in in_two.cosines[cut..].iter().zip(&at_once.cosines[cut..]) {
            let distance = f64::from((new.expect("a finite key") - whole.expect("a finite key")).abs());
            prop_assert!(distance <= 2.0_f64.powi(-12) / length.max(1e-9) + 1e-4, "{:?} for {:?}", new, whole);
        }
        for (sum, whole) in in_two.sum.iter().zip(&at_once.sum) {
            prop_assert!((sum - whole).abs() <= 1e-4 * tokens.len() as f32, "{} for {}", sum, whole);
        }
    }

    #[test]
    fn inverse_square_roots(bits in 0x0080_0000_u32..0x7f80_0000) {
        let x = f32::from_bits(bits);
        let error = f64::from(key_diff::inverse_sqrt(x)) * f64::from(x).sqrt() - 1.0;
        prop_assert!(error.abs() < 2.0_f64.powi(-20), "{error} for {x}");
    }

    #[test]
    fn lowest_norms_are_kept((dtype, head_dim, tokens) in keys(60), keep_ratio in 0.0..=1.0, order in order()) {
        let spec = TensorSpec::new(dtype, head_dim);
        let keys: Vec<Vec<u8>> = tokens.iter().map(|t| encode(dtype, t)).collect();
        let len = u32::try_from(keys.len()).expect("few tokens");
        let policy = Policy { order, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
        let scored = key_norm::score_row(&policy, 0, 0, &CacheRow::new(len), &spec, &keys.concat());
        let selection = select(&scored.order_keys, policy.budget, order);
        let kept = set(&selection.sources);
        prop_assert_eq!(kept.len(), selection.budget as usize, "exactly the budget, no slot twice");
        let norms: Vec<f64> = keys.iter().map(|k| exact_norm(dtype, k)).collect();
        let mut naive: Vec<u32> = (0..len).collect();
        naive.sort_by(|&a, &b| norms[a as usize].total_cmp(&norms[b as usize]));
        let threshold = norms[naive[selection.budget as usize - 1] as usize];
        let naive = set(&naive[..selection.budget as usize]);
        for &slot in kept.symmetric_difference(&naive) {
            let distance = (norms[slot as usize] - threshold).abs();
            prop_assert!(distance <= threshold * f64::from(head_dim) * 2.0_f64.powi(-24), "slot {slot}");
        }
    }

    #[test]
    fn ties_go_to_the_lower_slot(order_keys in prop::collection::vec(0_u32..6, 0..80), tokens in 1_u32..90, order in order()) {
        let selection = select(&order_keys, Budget::KeepTokens(tokens), order);
        let mut naive: Vec<u32> = (0..).take(order_keys.len()).collect();
        naive.sort_by_key(|&slot| order_keys[slot as usize]); // stable
        let num_protected = order_keys.iter().filter(|&&k| k == 0).count();
        let budget = order_keys.len().min(num_protected.max(tokens as usize));
        naive.truncate(budget);
        prop_assert_eq!(selection.budget as usize, budget);
        prop_assert_eq!(set(&selection.sources), set(&naive));
        prop_assert_eq!(selection.raised, (tokens as usize) < order_keys.len().min(num_protected));
        if let Some(&last) = naive.last() {
            let threshold = order_keys[last as usize];
            let ties = naive.iter().filter(|&&s| order_keys[s as usize] == threshold).count();
            prop_assert_eq!((selection.threshold, selection.num_ties as usize), (threshold, ties));
        }
    }

    #[test]
    fn fill_and_positional_keep_the_same_and_fill_moves_the_fewest(
        order_keys in prop::collection::vec(0_u32..40, 0..80), keep_ratio in 0.0..=1.0,
    ) {
        let fill = select(&order_keys, Budget::keep_ratio(keep_ratio), Order::Fill);
        let positional = select(&order_keys, Budget::keep_ratio(keep_ratio), Order::Positional);
        prop_assert_eq!(set(&fill.sources), set(&positional.sources));
        prop_assert!(positional.sources.is_sorted(), "positional keeps the order");
        let movers: Vec<u32> = positional.sources.iter().copied().filter(|&s| s >= fill.budget).collect();
        prop_assert_eq!(fill.num_moved(), movers.len());
        let moved: Vec<u32> = (0..).zip(&fill.sources).filter(|&(to, &from)| to != from).map(|p| *p.1).collect();
        prop_assert_eq!(moved, movers, "the j-th mover goes to the j-th hole");
    }

    #[test]
    fn nan_is_dropped_first(
        kinds in prop::collection::vec(0_u8..4, 1..60), direction in direction(), tokens in 1_u32..70, order in order(),
    ) {
        let key = |&kind: &u8| match kind {
            0 => encode(Dtype::F16, &[f32::NAN; 16]),
            1 => { let mut k = [f32::INFINITY; 16]; k[7] = -f32::NAN; encode(Dtype::F16, &k) }
            2 => encode(Dtype::F16, &[f32::INFINITY; 16]),
            _ => key_of(3),
        };
        let keys: Vec<u8> = kinds.iter().flat_map(key).collect();
        let len = u32::try_from(kinds.len()).expect("few tokens");
        let policy = Policy { direction, ..Policy::new(Budget::KeepTokens(tokens)) };
        let scored = key_norm::score_row(&policy, 0, 0, &CacheRow::new(len), &SPEC, &keys);
        prop_assert_eq!(scored.non_finite, kinds.iter().any(|&k| k < 3));
        let kept = set(&select(&scored.order_keys, policy.budget, order).sources);
        let nans: Vec<u32> = (0..len).filter(|&s| kinds[s as usize] < 2).collect();
        let num_nan_kept = tokens.min(len).saturating_sub(len - u32::try_from(nans.len()).expect("few"));
        let nan_kept: Vec<u32> = nans.iter().copied().filter(|s| kept.contains(s)).collect();
        prop_assert_eq!(&nan_kept[..], &nans[..num_nan_kept as usize], "only what is left over, lower slots first");
    }

    /// Against a list of (position, norm) pairs, over several rounds of appending and compressing.
    #[test]
    fn protection_is_by_original_position(
        rounds in prop::collection::vec(prop::collection::vec(0_u16..2000, 0..30), 1..5),
        sinks in 0_u32..8, recent in 0_u32..40, keep_ratio in 0.0..=1.0, highest in any::<bool>(), order in order(),
    ) {
        let direction = if highest { Direction::Highest } else { Direction::Lowest };
        let policy = Policy { direction, sinks, recent, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
        let (mut row, mut keys, mut values) = (CacheRow::default(), Vec::new(), Vec::new());
        let mut naive: Vec<(u32, u16)> = Vec::new();
        for (round, norms) in rounds.into_iter().enumerate() {
            // From the second round on, so that the first tokens may be gone and slots no longer be positions.
            let sinks = if round == 0 { 0 } else { sinks };
            let policy = Policy { sinks, ..policy.clone() };
            for norm in norms {
                naive.push((row.num_seen, norm));
                row.append(1);
                keys.extend(key_of(norm));
                values.extend(key_of(norm ^ 1));
            }
            compress_row(&policy, 0, 0, &mut row, &SPEC, &mut keys, &SPEC, &mut values).expect("a sound policy");
            keys.truncate(row.len as usize * 32);
            values.truncate(row.len as usize * 32);

            let protected = |p: u32| p < sinks || p + recent >= row.num_seen;
            let num_protected = naive.iter().filter(|t| protected(t.0)).count();
            let asked = policy.budget.tokens(u32::try_from(naive.len()).expect("few"), 0).expect("a sound budget");
            let budget = naive.len().min(num_protected.max(asked as usize));
            // Slots are in the order of the list, whatever the positions: ties go by slot.
            let mut ranked: Vec<usize> = (0..naive.len()).collect();
            let rank = |n: u16| if highest { -i32::from(n) } else { i32::from(n) };
            ranked.sort_by_key(|&s| (!protected(naive[s].0), if protected(naive[s].0) { 0 } else { rank(naive[s].1) }));
            ranked.truncate(budget);
            let expected: BTreeSet<(u32, u16)> = ranked.iter().map(|&s| naive[s]).collect();
            let positions: Vec<u32> = (0..row.len).map(|s| row.position_of(s)).collect();
            prop_assert_eq!(set(&positions), expected.iter().map(|t| t.0).collect::<BTreeSet<_>>());
            if order == Order::Positional {
                prop_assert!(positions.is_sorted(), "{positions:?}");
            }
            // The keys and values that moved are those of their positions.
            let norm_of = |p: u32| expected.iter().find(|t| t.0 == p).expect("a kept position").1;
            naive = positions.iter().map(|&p| (p, norm_of(p))).collect();
            prop_assert_eq!(&keys, &naive.iter().flat_map(|t| key_of(t.1)).collect::<Vec<_>>());
            prop_assert_eq!(&values, &naive.iter().flat_map(|t| key_of(t.1 ^ 1)).collect::<Vec<_>>());
        }
    }

    /// A decimal ratio times a length, in integers.
    #[test]
    fn budget_is_the_exact_product(digits in 0_u32..=6, numerator in 0_u128..=1_000_000, len in 0_u32..=1 << 20) {
        check_budget(numerator % (10_u128.pow(digits) + 1), digits, len)?;
    }

    #[test]
    fn budget_is_the_exact_product_where_it_is_whole(digits in 1_u32..=6, numerator in 0_u128..=1_000_000, n in 0_u32..=1 << 20) {
        let one = 10_u128.pow(digits);
        let len = n / u32::try_from(one).expect("at most 10^6") * u32::try_from(one).expect("at most 10^6");
        check_budget(numerator % (one + 1), digits, len)?;
        check_budget(55, 2, n / 100 * 100)?;
    }

    #[test]
    fn one_prefill_is_the_same_as_token_by_token(
        mut norms in prop::collection::vec(0_u16..2000, 1..60), tokens in 1_u32..40, sinks in 0_u32..5,
        direction in direction(), order in order(),
    ) {
        let tokens = tokens.max(sinks);
        if order == Order::Fill {
            // Fill keeps no order among equals, so the property is for distinct scores.
            let mut seen = BTreeSet::new();
            norms.retain(|n| seen.insert(*n));
        }
        let policy = Policy { direction, sinks, order, ..Policy::new(Budget::KeepTokens(tokens)) };
        let compress = |row: &mut CacheRow, keys: &mut Vec<u8>| {
            let mut values = keys.clone();
            compress_row(&policy, 3, 5, row, &SPEC, keys, &SPEC, &mut values).expect("a sound policy");
            keys.truncate(row.len as usize * 32);
        };
        let mut whole = (CacheRow::new(u32::try_from(norms.len()).expect("few")), norms.iter().flat_map(|&n| key_of(n)).collect());
        compress(&mut whole.0, &mut whole.1);
        let mut single = (CacheRow::default(), Vec::new());
        for &norm in &norms {
            single.0.append(1);
            single.1.extend(key_of(norm));
            compress(&mut single.0, &mut single.1);
        }
        prop_assert_eq!(whole.0.num_seen, single.0.num_seen);
        if order == Order::Positional {
            prop_assert_eq!(&whole, &single);
        }
        prop_assert_eq!(set(&whole.0.positions), set(&single.0.positions));
    }

    #[test]
    fn rows_move_as_the_selection_says(order_keys in prop::collection::vec(0_u32..9, 1..50), keep_ratio in 0.0..=1.0, order in order()) {
        let selection = select(&order_keys, Budget::keep_ratio(keep_ratio), order);
        let before: Vec<u8> = (0..).take(order_keys.len() * 3).collect();
        let mut rows = before.clone();
        compact::move_rows(&selection, 3, &mut rows);
        let expected: Vec<u8> = selection.sources.iter().flat_map(|&s| before[s as usize * 3..][..3].to_vec()).collect();
        prop_assert_eq!(&rows[..expected.len()], &expected[..]);
        prop_assert_eq!(&rows[expected.len()..], &before[expected.len()..], "the tail is left as it is");
    }
}

fn check_budget(numerator: u128, digits: u32, len: u32) -> Result<(), TestCaseError> {
    let one = 10_u128.pow(digits);
    // As a user writes it: 0.55, not 55 / 100 in floats.
    let keep_ratio: f64 = format!("{numerator}e-{digits}").parse().expect("a decimal");
    for (rounding, asked) in [
        (Rounding::Ceil, (numerator * u128::from(len)).div_ceil(one)),
        (Rounding::Floor, numerator * u128::from(len) / one),
    ] {
        let expected = asked.max(1).min(len.into());
        let budget = Budget::KeepRatio { keep_ratio, rounding }.tokens(len, 0).expect("a sound ratio");
        prop_assert_eq!(u128::from(budget), expected, "{} of {}, {:?}", keep_ratio, len, rounding);
    }
    Ok(())
}

#[test]
fn budgets_of_the_documentation() {
    let tokens = |keep_ratio, rounding, len| Budget::KeepRatio { keep_ratio, rounding }.tokens(len, 0).expect("sound");
    for rounding in [Rounding::Ceil, Rounding::Floor] {
        assert_eq!(tokens(0.55, rounding, 100), 55, "in floats 0.55 * 100 is above 55");
        assert_eq!(tokens(0.29, rounding, 100), 29, "in floats 0.29 * 100 is below 29");
        assert_eq!(tokens(1.0, rounding, 1 << 20), 1 << 20, "all");
        assert_eq!(tokens(0.0, rounding, 1 << 20), 1, "never none");
        assert_eq!(tokens(0.0, rounding, 0), 0, "of nothing nothing");
    }
    assert_eq!([Rounding::Ceil, Rounding::Floor].map(|r| tokens(0.5, r, 101)), [51, 50], "roundings differ");
    assert_eq!(Budget::keep_ratio(0.5).tokens(10, 7).expect("sound"), 7, "raised to what is protected");
    assert_eq!(Budget::keep_ratio(1.0).tokens(u32::MAX, 0).expect("sound"), u32::MAX, "of any length");
    assert_eq!(Budget::keep_ratio(0.5).tokens(10, 70).expect("sound"), 10, "but not above the length");
}

#[test]
fn order_of_special_norms() {
    let key = |direction, norm| key_norm::order_key(direction, norm, 0, 0, 0);
    let norms = [0.0, f32::MIN_POSITIVE / 8.0, 1.0, f32::MAX, f32::INFINITY];
    let lowest = norms.map(|n| key(Direction::Lowest, Some(n)));
    assert!(lowest.is_sorted_by(|a, b| a < b) && lowest[0] == 1, "{lowest:?}");
    let highest = norms.map(|n| key(Direction::Highest, Some(n)));
    assert!(highest.is_sorted_by(|a, b| a > b) && highest[4] == 1, "{highest:?}");
    for direction in [Direction::Lowest, Direction::Highest, Direction::Random { seed: 1 }] {
        assert_eq!(key(direction, None), NAN_ORDER_KEY, "{direction:?}");
        for norm in norms {
            assert!((1..NAN_ORDER_KEY).contains(&key(direction, Some(norm))), "{direction:?} {norm}");
        }
    }
}

#[test]
fn elements_at_the_edges() {
    let norm = |dtype, value: f32| key_norm::squared_norm(&TensorSpec::new(dtype, 16), &encode(dtype, &[value; 16]));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E5M2] {
        assert_eq!(norm(dtype, -0.0).map(f32::to_bits), Some(0), "{dtype:?}: zero has no sign");
        assert_eq!(norm(dtype, f32::INFINITY), Some(f32::INFINITY), "{dtype:?}");
        assert_eq!(norm(dtype, f32::NAN), None, "{dtype:?}");
        assert_eq!(norm(dtype, -2.0), Some(64.0), "{dtype:?}");
    }
    assert_eq!(norm(Dtype::F32, 3e38), Some(f32::INFINITY), "overflow counts as infinite");
    assert_eq!(norm(Dtype::Bf16, 3e38), Some(f32::INFINITY), "overflow counts as infinite");
    let subnormal = 2.0_f32.powi(-24);
    assert_eq!(norm(Dtype::F16, subnormal), Some(16.0 * 2.0_f32.powi(-48)), "f16 subnormals are exact");
    assert_eq!(norm(Dtype::Bf16, 2.0_f32.powi(-63)), Some(16.0 * 2.0_f32.powi(-126)), "the smallest that counts");
    assert_eq!(norm(Dtype::Bf16, -2.0_f32.powi(-63) * 0.99), Some(0.0), "below it nothing");
}

/// Each of the 256 bytes, as the crate `float8` and as the formats' definition has it.
#[test]
fn bytes_of_f8() {
    for (dtype, mantissa_bits, bias) in [(Dtype::F8E4M3, 3, 7), (Dtype::F8E5M2, 2, 15)] {
        for byte in 0..=255_u8 {
            let mut key = [0_u8; 16];
            key[usize::from(byte) % 16] = byte;
            let got = key_norm::squared_norm(&TensorSpec::new(dtype, 16), &key).map(f64::from);
            let (exponent, mantissa) = ((byte & 0x7f) >> mantissa_bits, byte & ((1 << mantissa_bits) - 1));
            let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
            let hidden = if exponent == 0 { 0.0 } else { 1.0 };
            let value = (hidden + fraction) * 2.0_f64.powi(i32::from(exponent.max(1)) - bias);
            let expected = match (dtype, byte & 0x7f) {
                (Dtype::F8E4M3, 0x7f) | (Dtype::F8E5M2, 0x7d..) => None,
                (Dtype::F8E5M2, 0x7c) => Some(f64::INFINITY),
                _ => Some(value * value),
            };
            assert_eq!(got, expected, "{dtype:?} {byte:#x}");
            let by_crate = exact_norm(dtype, &key);
            assert!(expected.map_or(by_crate.is_nan(), |e| e == by_crate), "{dtype:?} {byte:#x}: {by_crate}");
        }
    }
}

#[test]
fn random_bits_are_murmur3_and_look_random() {
    // The finaliser of MurmurHash3_x86_32, written anew.
    let fmix = |mut h: u32| {
        for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35)] {
            h = (h ^ (h >> shift)).wrapping_mul(factor);
        }
        h ^ (h >> 16)
    };
    assert_eq!(fmix(1), 0x514e_28b7, "a known value of the finaliser");
    let (seed, layer, row) = (0x1234_5678_9abc_def0_u64, 3_u32, 5_u32);
    let words =
        [0x9abc_def0 ^ 0x9e37_79b9, 0x1234_5678, layer.wrapping_mul(0x85eb_ca6b), row.wrapping_mul(0xc2b2_ae35), 7];
    let expected = words.into_iter().fold(0, |h, word: u32| fmix(h ^ word)) >> 1;
    assert_eq!(key_norm::random_bits(seed, layer, row, 7), expected);

    const NUM: u32 = 1 << 16;
    for (seed, layer, row) in [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1), (u64::MAX, 31, 63)] {
        let bits: Vec<u32> = (0..NUM).map(|p| key_norm::random_bits(seed, layer, row, p)).collect();
        // Each count is binomial with standard deviation 128 (bits) and about 16 (buckets); six of them are allowed.
        for bit in 0..31 {
            let ones = bits.iter().filter(|&b| b >> bit & 1 == 1).count();
            assert!(ones.abs_diff(NUM as usize / 2) < 6 * 128, "bit {bit} is set {ones} times");
        }
        for shift in [0, 8, 23] {
            let mut buckets = [0_u32; 256];
            bits.iter().for_each(|b| buckets[(b >> shift & 255) as usize] += 1);
            assert!(buckets.iter().all(|b| b.abs_diff(256) < 6 * 16), "buckets at {shift}: {buckets:?}");
        }
        assert!(bits.iter().all(|b| b >> 31 == 0), "31 bits");
        let other = (0..NUM).filter(|&p| key_norm::random_bits(seed ^ 2, layer, row, p) == bits[p as usize]).count();
        assert!(other < 4, "{other} of {NUM} are the same with another seed");
    }
}
