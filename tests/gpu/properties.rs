//! Cases drawn at random: every selector and both orders against the reference.
//! `KEYNORM_PROPTEST_CASES` sets how many, `KEYNORM_PROPTEST_SEED` another start.

use keynorm::{
    Budget, BudgetOverride, Direction, Dtype, KvShape, Options, Order, Policy, Pool, Rounding, Score, Selector, Switch,
    TensorSpec,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::{Case, Data, Layout, number, run};

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2])
}

fn spec() -> impl Strategy<Value = TensorSpec> {
    let head_dim = prop_oneof![2 => Just(16_u32), 2 => Just(64), 1 => (2_u32..=16).prop_map(|n| n * 8), 1 => Just(256)];
    (dtype(), head_dim).prop_map(|(dtype, head_dim)| {
        let multiple = if matches!(dtype, Dtype::F8E4M3 | Dtype::F8E5M2) { 16 } else { 8 };
        TensorSpec::new(dtype, head_dim.next_multiple_of(multiple))
    })
}

/// Around the sizes of workgroups, subgroups, sorts and tiles.
fn capacity() -> impl Strategy<Value = u32> {
    let edge = prop::sample::select(vec![1, 2, 3, 4, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049]);
    prop_oneof![6 => 1_u32..400, 3 => edge, 1 => 4000_u32..20_000]
}

fn shape() -> impl Strategy<Value = KvShape> {
    (1_u32..=3, 1_u32..=3, 1_u32..=4, capacity(), spec(), spec(), any::<bool>()).prop_map(
        |(num_layers, batch_size, num_kv_heads, capacity, keys, values, same)| {
            let small = if capacity > 1000 { 1 } else { num_kv_heads };
            let num_layers = if capacity > 400 { 1 } else { num_layers };
            let values = if same { keys } else { values };
            KvShape { num_layers, batch_size, num_kv_heads: small, capacity, keys, values }
        },
    )
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::Hnd),
        Just(Layout::Nhd),
        (0_u64..40, 0_u64..5).prop_map(|(words, pad)| Layout::Offset { words, pad_elements: pad * 2 }),
        (0_u64..9).prop_map(|words| Layout::Interleaved { words }),
        Just(Layout::Touching),
    ]
}

fn policy(shape: KvShape) -> impl Strategy<Value = Policy> {
    let ratio = prop_oneof![Just(0.0), Just(1.0), Just(0.5), 0.0..=1.0];
    let rounding = prop_oneof![Just(Rounding::Ceil), Just(Rounding::Floor)];
    let budget = prop_oneof![
        3 => (ratio, rounding).prop_map(|(keep_ratio, rounding)| Budget::KeepRatio { keep_ratio, rounding }),
        1 => (1..=shape.capacity + 2).prop_map(Budget::KeepTokens),
    ];
    let direction = prop_oneof![
        2 => Just(Direction::Lowest),
        1 => Just(Direction::Highest),
        1 => any::<u64>().prop_map(|seed| Direction::Random { seed }),
    ];
    let protection = prop_oneof![Just((0, 0)), (0_u32..6, 0..shape.capacity / 2 + 2)];
    let skip = prop::collection::vec(0..shape.num_layers, 0..2);
    let score = prop_oneof![
        4 => Just(Score::KeyNorm),
        1 => Just(Score::KeyDiff),
        1 => Just(Score::Centroid),
        1 => Just(Score::ValueKeyRatio),
    ];
    let share = prop::option::weighted(0.2, 0.0..=1.0);
    let min_len = prop_oneof![3 => Just(0), 1 => 0..=shape.capacity];
    let head = (0..shape.num_layers, 0..shape.num_kv_heads, 0.0..=1.0);
    let special = prop_oneof![
        4 => Just(Special::Nothing),
        1 => Just(Special::CachedNorms),
        1 => (0_u32..20).prop_map(Special::Pool),
        1 => (0.0_f32..12.0).prop_map(Special::MaxNorm),
        1 => head.prop_map(|(layer, head, keep_ratio)| Special::Override(layer, head, keep_ratio)),
    ];
    let what = (budget, score, direction, special);
    (what, protection, share, min_len, skip).prop_map(
        move |(what, (sinks, recent), recent_share, min_len, skip_layers)| {
            let (budget, score, direction, special) = what;
            // A budget of tokens below what is protected is refused: see the tests of refusals.
            let budget = match budget {
                Budget::KeepTokens(n) => Budget::KeepTokens(n.max(sinks + recent)),
                other => other,
            };
            let policy =
                Policy { score, direction, sinks, recent, recent_share, min_len, skip_layers, ..Policy::new(budget) };
            let specialised = special.of(policy.clone());
            // KeyDiff with cached scores has tests of its own: running.rs.
            let keeps_sums = specialised.cached_norms && score != Score::KeyNorm;
            if specialised.check(&shape).is_ok() && !keeps_sums { specialised } else { policy }
        },
    )
}

/// What does not go with every score or direction.
#[derive(Debug, Clone)]
enum Special {
    Nothing,
    CachedNorms,
    Pool(u32),
    MaxNorm(f32),
    Override(u32, u32, f64),
}

impl Special {
    fn of(self, policy: Policy) -> Policy {
        match self {
            Self::Nothing => policy,
            Self::CachedNorms => Policy { cached_norms: true, ..policy },
            Self::Pool(min_tokens) => Policy { pool: Some(Pool { min_tokens }), ..policy },
            Self::MaxNorm(norm) => Policy { budget: Budget::MaxNorm(norm), ..policy },
            Self::Override(layer, head, keep_ratio) => {
                let (layers, heads) = (layer..layer + 1, head..head + 1);
                Policy {
                    budgets: vec![BudgetOverride { layers, heads, budget: Budget::keep_ratio(keep_ratio) }],
                    ..policy
                }
            }
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let data = prop_oneof![3 => Just(Data::Random), 1 => Just(Data::Ties), 1 => Just(Data::AllEqual), 2 => Just(Data::Special)];
    let subgroups = prop_oneof![Just(Switch::Auto), Just(Switch::Off), Just(Switch::On)];
    shape().prop_flat_map(move |shape| {
        let lengths = prop::collection::vec((0..=shape.capacity, 0..=shape.capacity), shape.batch_size as usize);
        let active = prop::collection::vec(prop::bool::weighted(0.8), shape.batch_size as usize);
        let flags = (any::<bool>(), any::<bool>(), any::<(bool, bool)>(), any::<u64>());
        (policy(shape), layout(), data.clone(), lengths, active, subgroups.clone(), flags).prop_map(
            move |(
                policy,
                layout,
                data,
                lengths,
                active,
                subgroups,
                (appends, windows, (one_buffer, encoded), seed),
            )| {
                let mut case = Case::new(shape, policy);
                let is_f8 = |spec: TensorSpec| matches!(spec.dtype, Dtype::F8E4M3 | Dtype::F8E5M2);
                case.layout = match layout {
                    Layout::Interleaved { .. } if shape.keys.dtype != shape.values.dtype => Layout::Touching,
                    Layout::Offset { words, pad_elements } if is_f8(shape.keys) || is_f8(shape.values) => {
                        Layout::Offset { words, pad_elements: 2 * pad_elements }
                    }
                    _ => layout,
                };
                case.data = data;
                case.lengths = lengths.iter().map(|l| l.0).collect();
                if appends {
                    case.appended = lengths.iter().map(|l| l.1.min(shape.capacity - l.0)).collect();
                }
                case.active = active;
                case.options = Options::with_subgroups(subgroups);
                let row_bytes = shape.capacity * (shape.keys.row_bytes().max(shape.values.row_bytes()) + 40);
                let contiguous = matches!(case.layout, Layout::Hnd | Layout::Offset { .. });
                case.options.max_binding_bytes = (windows && contiguous && row_bytes < 1 << 16).then_some(1 << 16);
                (case.one_buffer, case.encoded, case.seed) = (one_buffer, encoded, seed);
                case
            },
        )
    })
}

#[test]
fn random_cases() {
    let cases = u32::try_from(number("KEYNORM_PROPTEST_CASES", 64)).expect("fewer cases");
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number("KEYNORM_PROPTEST_SEED", 1).to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let run_all = |case: Case| {
        for selector in [Selector::Auto, Selector::Radix, Selector::Bitonic] {
            for order in [Order::Fill, Order::Positional] {
                let mut case = case.clone();
                case.policy.selector = selector;
                case.policy.order = order;
                run(&case);
            }
        }
        Ok(())
    };
    runner.run(&case(), run_all).unwrap_or_else(|e| panic!("{e}"));
}
