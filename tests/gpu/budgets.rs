//! Budgets by layer, by head, by norm, pooled, and segments: against the reference, in every selector and order.

use keynorm::{
    Budget, BudgetOverride, BuildError, Compressor, Direction, Dtype, KvView, Options, Order, Policy, Pool, Segment,
    Selector,
};

use crate::support::{BUILT, Case, Data, Fixture, gpu, run, shape};

fn variants() -> impl Iterator<Item = Policy> {
    [Selector::Auto, Selector::Radix, Selector::Bitonic].into_iter().flat_map(|selector| {
        [Order::Fill, Order::Positional].into_iter().flat_map(move |order| {
            [false, true].map(|cached_norms| Policy {
                selector,
                order,
                cached_norms,
                ..Policy::new(Budget::keep_ratio(0.5))
            })
        })
    })
}

/// Two compressions of short rows of every kind, and of rows that take the long-row dispatches.
fn run_short_and_long(edit: impl Fn(&mut Case)) {
    for policy in variants() {
        for data in [Data::Random, Data::Ties, Data::Special] {
            let mut case = Case::new(shape(2, 3, 300, 16, Dtype::F16), policy.clone());
            case.lengths = vec![257, 41];
            case.appended = vec![43, 59];
            case.data = data;
            edit(&mut case);
            run(&case);
        }
        if policy.cached_norms == (policy.order == Order::Fill) {
            let mut case = Case::new(shape(2, 2, 17_500, 16, Dtype::F16), policy.clone());
            case.lengths = vec![17_100, 9_000];
            case.data = Data::Special;
            edit(&mut case);
            run(&case);
        }
    }
}

#[test]
fn budgets_by_layer_and_head() {
    for policy in variants() {
        let mut case = Case::new(shape(2, 3, 300, 16, Dtype::F16), policy);
        case.shape.num_layers = 4;
        case.policy.skip_layers = vec![1];
        case.policy.budgets = vec![
            BudgetOverride { layers: 0..4, heads: 2..3, budget: Budget::KeepTokens(30) },
            BudgetOverride { layers: 2..3, heads: 0..3, budget: Budget::keep_ratio(0.9) },
            BudgetOverride { layers: 3..4, heads: 1..3, budget: Budget::MaxNorm(2.0) },
        ];
        case.lengths = vec![250, 77];
        case.appended = vec![50, 3];
        run(&case);
    }
}

#[test]
fn norm_limits() {
    for max_norm in [0.0, 1.5, 4.0, 1e30] {
        run_short_and_long(|case| {
            case.policy.budget = Budget::MaxNorm(max_norm);
            (case.policy.sinks, case.policy.recent) = (2, 9);
        });
    }
}

#[test]
fn pools() {
    for (min_tokens, sinks, recent) in [(0, 0, 0), (20, 0, 0), (3, 4, 30), (2_000, 1, 0)] {
        run_short_and_long(|case| {
            case.policy.pool = Some(Pool { min_tokens });
            (case.policy.sinks, case.policy.recent) = (sinks, recent);
        });
    }
    for direction in [Direction::Highest, Direction::Random { seed: 5 }] {
        run_short_and_long(|case| {
            case.policy.pool = Some(Pool { min_tokens: 5 });
            case.policy.direction = direction;
            case.policy.budgets = vec![BudgetOverride { layers: 0..1, heads: 1..2, budget: Budget::keep_ratio(0.1) }];
        });
    }
}

/// The pool gives more to heads whose norms spread further down, and does not starve one whose norms are eight times as large.
#[test]
fn a_pool_moves_tokens_between_heads() {
    let gpu = gpu();
    let policy = Policy { pool: Some(Pool { min_tokens: 1 }), ..Policy::new(Budget::keep_ratio(0.25)) };
    let mut case = Case::new(shape(1, 4, 800, 16, Dtype::F16), policy);
    case.shape.num_layers = 2;
    let mut fixture = Fixture::new(gpu, &case);
    fixture.compress_and_compare(gpu, &case, "pooled");
    for layer in &fixture.host {
        let lens: Vec<u32> = layer.rows.iter().map(|r| r.len).collect();
        assert_eq!(lens.iter().sum::<u32>(), 800, "a quarter of four heads of 800");
        assert!(lens.iter().any(|&l| l != lens[0]), "heads of different spread keep different numbers: {lens:?}");
    }
    let mut scaled = Fixture::new(gpu, &case);
    let spec = &case.shape.keys;
    for layer in &mut scaled.host {
        let mut keys = layer.gather(&layer.keys, spec, &case.shape, 1);
        for element in keys.chunks_exact_mut(2) {
            let eightfold = half::f16::from_le_bytes([element[0], element[1]]) * half::f16::from_f32(8.0);
            element.copy_from_slice(&eightfold.to_le_bytes());
        }
        layer.scatter(layer.keys, spec, &case.shape, 1, &keys);
    }
    scaled.upload_all(gpu);
    scaled.compress_and_compare(gpu, &case, "scaled");
    let lens = |fixture: &Fixture| -> Vec<u32> { fixture.host.iter().flat_map(|l| &l.rows).map(|r| r.len).collect() };
    assert_eq!(lens(&scaled), lens(&fixture), "a head's scale does not count");
}

#[test]
fn pools_in_windows() {
    let mut case = Case::new(shape(5, 3, 300, 64, Dtype::F16), Policy::new(Budget::keep_ratio(0.5)));
    case.policy.pool = Some(Pool { min_tokens: 4 });
    case.shape.num_layers = 3;
    case.policy.skip_layers = vec![1];
    case.options.max_binding_bytes = Some(1 << 17);
    run(&case);
}

/// Heads of a pool that are below the least length wait, and the others share what theirs leave.
#[test]
fn short_heads_of_a_pool_are_left_whole() {
    for selector in [Selector::Radix, Selector::Bitonic] {
        let gpu = gpu();
        let policy = Policy { selector, pool: Some(Pool { min_tokens: 1 }), ..Policy::new(Budget::keep_ratio(0.4)) };
        let mut case = Case::new(shape(2, 4, 900, 16, Dtype::F16), policy);
        case.lengths = vec![800, 500];
        case.appended = vec![20, 90];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "pooled");
        fixture.append(gpu, &case);
        let before: Vec<u32> = fixture.host[0].rows.iter().map(|row| row.len).collect();
        let mut sorted = before[..4].to_vec();
        sorted.sort_unstable();
        assert!(sorted[1] < sorted[2], "heads of different lengths: {before:?}");
        case.policy.min_len = sorted[2];
        let views: Vec<_> = fixture.buffers.iter().map(|b| KvView::hnd(&case.shape, &b[0], &b[1])).collect();
        let plan = BUILT.compressor(gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
        let workspace = plan.create_workspace().expect("a workspace");
        fixture.bound = plan.bind(&gpu.device, &views, &fixture.state, &workspace).expect("a binding");
        fixture.compress_and_compare(gpu, &case, "again");
        for (row, &before) in fixture.host[0].rows.iter().zip(&before) {
            assert_eq!(row.len == before, before < case.policy.min_len, "{} of {before} tokens", row.len);
        }
    }
}

/// A pool is selected from at once, so that its heads' scratch has to fit a binding.
#[test]
fn pools_beyond_a_binding_are_refused() {
    let mut options = Options::default();
    options.max_binding_bytes = Some(1 << 16);
    let compressor = Compressor::new(&gpu().device, options).expect("a compressor");
    let policy = Policy { pool: Some(Pool { min_tokens: 1 }), ..Policy::new(Budget::keep_ratio(0.5)) };
    compressor.plan(&shape(1, 4, 2000, 16, Dtype::F16), &policy).expect("four heads fit");
    let refused = compressor.plan(&shape(1, 32, 2000, 16, Dtype::F16), &policy);
    assert!(matches!(refused, Err(BuildError::Limit { available: 65_536, .. })), "{refused:?}");
}

#[test]
fn rows_below_a_least_length_are_left_whole() {
    for min_len in [41, 42, 258] {
        run_short_and_long(|case| case.policy.min_len = min_len);
    }
}

#[test]
fn segments_pin_ranges_and_keep_quotas() {
    run_short_and_long(|case| {
        case.policy.segments = true;
        case.policy.recent = 7;
        case.segments = vec![
            vec![
                Segment::pinned(10..30),
                Segment { positions: 30..90, min_tokens: 31 },
                Segment { positions: 100..200, min_tokens: 5 },
                Segment { positions: 250..9_000, min_tokens: 100 },
            ],
            vec![Segment { positions: 0..40, min_tokens: 39 }, Segment { positions: 40..40, min_tokens: 9 }],
        ];
    });
}

#[test]
fn segments_and_pools_together() {
    run_short_and_long(|case| {
        case.policy.segments = true;
        case.policy.pool = Some(Pool { min_tokens: 2 });
        case.policy.budget = Budget::keep_ratio(0.2);
        case.segments = vec![vec![Segment::pinned(3..60), Segment { positions: 200..300, min_tokens: 8 }]];
    });
}

#[test]
fn inactive_sequences_have_no_pool_and_no_segments() {
    run_short_and_long(|case| {
        case.policy.segments = true;
        case.policy.pool = Some(Pool { min_tokens: 2 });
        case.segments = vec![vec![Segment::pinned(3..60)], vec![Segment::pinned(3..10)]];
        case.active = vec![true, false];
    });
}
