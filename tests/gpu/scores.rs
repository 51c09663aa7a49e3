//! Scores other than the key norm, bit for bit against their references, in every selector, order, dtype and way to add.

use keynorm::{
    Budget, BudgetOverride, Direction, Dtype, ExternalScore, Options, Order, Policy, Score, Segment, Selector, Stages,
    Switch, TensorSpec,
};

use crate::external::run_external;
use crate::running::run_running;
use crate::support::{BUILT, Case, Data, Fixture, Layout, PageLayout, Paged, gpu, run, shape, submit};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const SWITCHES: [Switch; 3] = [Switch::Auto, Switch::Off, Switch::On];

fn policy(score: Score, keep_ratio: f64) -> Policy {
    Policy { score, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

/// Every score of what the cache holds.
const SCORES: [Score; 3] = [Score::KeyDiff, Score::Centroid, Score::ValueKeyRatio];

#[test]
fn every_dtype_selector_and_order() {
    for score in SCORES {
        for dtype in DTYPES {
            for (selector, order) in
                [Selector::Radix, Selector::Bitonic].into_iter().flat_map(|s| ORDERS.map(|o| (s, o)))
            {
                let mut case = Case::new(shape(2, 3, 301, 128, dtype), policy(score, 0.5));
                (case.policy.selector, case.policy.order) = (selector, order);
                case.lengths = vec![301, 77];
                case.appended = vec![0, 200];
                run(&case);
            }
        }
    }
}

/// Tokens of 2 to 32 lanes and of up to four chunks a lane, by every way to add them.
#[test]
fn head_dims() {
    for score in SCORES {
        for head_dim in [16, 24, 80, 128, 256, 264, 512] {
            for (dtype, subgroups) in DTYPES.into_iter().flat_map(|d| SWITCHES.map(|s| (d, s))) {
                let mut case = Case::new(shape(1, 2, 600, head_dim, dtype), policy(score, 0.4));
                case.options = Options::with_subgroups(subgroups);
                case.lengths = vec![599];
                run(&case);
            }
        }
    }
}

#[test]
fn data_kinds_and_directions() {
    for score in SCORES {
        for data in [Data::Ties, Data::AllEqual, Data::Special, Data::Scaled { power: 40 }, Data::Scaled { power: -40 }]
        {
            for dtype in DTYPES {
                let overflows = dtype == Dtype::F16 && matches!(data, Data::Scaled { .. });
                for direction in [Direction::Lowest, Direction::Highest, Direction::Random { seed: 5 }] {
                    for subgroups in SWITCHES.into_iter().filter(|_| !overflows) {
                        let mut case = Case::new(shape(1, 2, 400, 32, dtype), policy(score, 0.5));
                        case.options = Options::with_subgroups(subgroups);
                        case.policy.direction = direction;
                        case.data = data;
                        run(&case);
                    }
                }
            }
        }
    }
}

#[test]
fn lengths_and_layouts() {
    let layouts =
        [Layout::Nhd, Layout::Offset { words: 3, pad_elements: 2 }, Layout::Interleaved { words: 0 }, Layout::Touching];
    for score in SCORES {
        for (layout, lengths) in layouts.into_iter().zip([[0, 1], [255, 257], [512, 3], [700, 256]]) {
            for order in ORDERS {
                let mut case = Case::new(shape(2, 2, 700, 64, Dtype::F16), policy(score, 0.4));
                case.policy.order = order;
                case.layout = layout;
                case.lengths = lengths.to_vec();
                run(&case);
            }
        }
    }
}

/// Several layers, skipped ones, windows of whole rows and inactive sequences.
#[test]
fn layers_and_windows() {
    for score in SCORES {
        let mut case = Case::new(shape(3, 5, 300, 64, Dtype::F16), policy(score, 0.5));
        case.shape.num_layers = 4;
        case.policy.skip_layers = vec![0, 2];
        case.lengths = vec![150, 77, 290];
        case.appended = vec![50, 3, 10];
        run(&case);
        case.options.max_binding_bytes = Some(1 << 17);
        case.active = vec![true, false, true];
        run(&case);
    }
}

/// Rows of many tiles, more than are added in turn at once; the histogram fused and apart.
#[test]
fn long_rows() {
    let gpu = gpu();
    for score in SCORES {
        for (direction, dtype) in [(Direction::Lowest, Dtype::F16), (Direction::Highest, Dtype::F32)] {
            let mut case = Case::new(shape(2, 1, 40_000, 16, dtype), policy(score, 0.5));
            case.policy.direction = direction;
            case.policy.recent = 64;
            case.lengths = vec![40_000, 9001];
            let mut fixture = Fixture::new(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "fused");
            fixture.restart(gpu, &case);
            let max_len = fixture.max_len();
            for stage in [Stages::SCORE, Stages::SELECT, Stages::COMPACT] {
                submit(gpu, |pass| fixture.bound.record_stages(pass, max_len, stage).expect("a record"));
            }
            fixture.compress_host(&case);
            fixture.compare(gpu, &case, "apart");
        }
    }
}

/// The window of at most a quarter of the budget, with both budgets, whatever the score.
#[test]
fn presets_and_windows_by_share() {
    for (budget, lengths) in [
        (Budget::keep_ratio(0.1), [1000, 39]),
        (Budget::keep_ratio(0.9), [1000, 1]),
        (Budget::KeepTokens(100), [700, 120]),
        (Budget::KeepTokens(3), [5, 2]),
    ] {
        for score in [Score::KeyDiff, Score::Centroid, Score::KeyNorm] {
            let mut case = Case::new(shape(2, 2, 1100, 64, Dtype::F16), Policy { score, ..Policy::keydiff(budget) });
            case.policy.skip_layers.clear();
            case.lengths = lengths.to_vec();
            case.appended = vec![100, 30];
            run(&case);
        }
    }
    let policy = Policy::keydiff(Budget::keep_ratio(0.1));
    assert_eq!([10, 40, 1000, 2560, 9000].map(|len| policy.recent_of(len)), [0, 1, 25, 64, 64], "windows at keep 0.1");
}

/// Keys and values of other types, sizes and numbers of lanes.
#[test]
fn ratios_of_tensors_that_differ() {
    for (keys, values) in [
        (TensorSpec::new(Dtype::F16, 192), TensorSpec::new(Dtype::F32, 128)),
        (TensorSpec::new(Dtype::F32, 16), TensorSpec::new(Dtype::Bf16, 512)),
        (TensorSpec::new(Dtype::Bf16, 64), TensorSpec::new(Dtype::F16, 24)),
    ] {
        for (subgroups, direction) in
            [(Switch::Auto, Direction::Highest), (Switch::Off, Direction::Lowest), (Switch::On, Direction::Highest)]
        {
            let mut case = Case::new(shape(2, 2, 500, 64, Dtype::F16), policy(Score::ValueKeyRatio, 0.3));
            (case.shape.keys, case.shape.values) = (keys, values);
            case.options = Options::with_subgroups(subgroups);
            case.policy.direction = direction;
            (case.data, case.lengths) = (Data::Special, vec![500, 131]);
            run(&case);
        }
    }
}

#[test]
fn scores_of_the_callers() {
    let gpu = gpu();
    for kind in [ExternalScore::F32, ExternalScore::OrderKeys] {
        for direction in [Direction::Lowest, Direction::Highest] {
            // The threshold among usual scores, and among infinities and NaN.
            for (capacity, selector, protected, keep_ratio) in [
                (300, Selector::Radix, 0, 0.4),
                (300, Selector::Bitonic, 9, 0.4),
                (9000, Selector::Radix, 9, 0.4),
                (300, Selector::Radix, 0, 0.92),
                (300, Selector::Radix, 0, 0.97),
                (9000, Selector::Radix, 0, 0.999),
            ] {
                let policy = policy(Score::External(kind), keep_ratio);
                let mut case = Case::new(shape(2, 3, capacity, 16, Dtype::F16), policy);
                case.shape.num_layers = 3;
                case.policy.skip_layers = vec![1];
                (case.policy.direction, case.policy.selector) = (direction, selector);
                (case.policy.sinks, case.policy.recent) = (protected, protected);
                case.lengths = vec![capacity - 3, capacity / 3];
                run_external(gpu, &case, kind, &BUILT);
            }
        }
    }
}

/// Scores lie by strides where tokens lie in pages, whose tables may be faulty and whose prefixes stay.
#[test]
fn scores_of_the_callers_by_pages() {
    let gpu = gpu();
    for (order, subgroups) in ORDERS.into_iter().zip([Switch::Off, Switch::On]) {
        for (capacity, faults) in [(320, vec![]), (320, vec![(1, 3, 500)]), (9600, vec![])] {
            let mut case =
                Case::new(shape(3, 2, capacity, 32, Dtype::F16), policy(Score::External(ExternalScore::F32), 0.4));
            (case.policy.order, case.options) = (order, Options::with_subgroups(subgroups));
            (case.shape.num_layers, case.policy.skip_layers) = (2, vec![0]);
            (case.lengths, case.active) = (vec![capacity - 9, capacity / 2, 77], vec![true, true, false]);
            let mut paged = Paged::new(16, PageLayout::Hnd);
            (paged.faults, paged.first_writable) = (faults, vec![2, 0, 0]);
            case.paged = Some(paged);
            run_external(gpu, &case, ExternalScore::F32, &BUILT);
        }
    }
}

/// What decides after the score does not mind which it was: budgets by layer and head, least lengths, segments.
#[test]
fn budgets_and_segments_of_every_score() {
    for score in SCORES {
        for capacity in [600, 9500] {
            let mut case = Case::new(shape(2, 3, capacity, 16, Dtype::F16), policy(score, 0.5));
            case.policy.budgets =
                vec![BudgetOverride { layers: 0..1, heads: 1..3, budget: Budget::KeepTokens(capacity / 5) }];
            (case.policy.segments, case.policy.min_len) = (true, 50);
            let quota = Segment { positions: 100..300, min_tokens: 150 };
            case.segments = vec![vec![Segment::pinned(10..60), quota]];
            case.lengths = vec![capacity - 9, 49];
            run(&case);
        }
    }
}

/// The window by share where order keys come from cached norms.
#[test]
fn window_by_share_from_cached_norms() {
    let policy = Policy { score: Score::KeyNorm, ..Policy::keydiff(Budget::keep_ratio(0.2)) };
    let mut case = Case::new(shape(2, 2, 1000, 64, Dtype::F16), Policy { cached_norms: true, ..policy });
    case.policy.skip_layers.clear();
    case.lengths = vec![900, 120];
    case.appended = vec![100, 300];
    run(&case);
}

/// Random choice needs no scores, and none are given; a key with a NaN comes last all the same.
#[test]
fn random_choice_without_scores() {
    for kind in [ExternalScore::F32, ExternalScore::OrderKeys] {
        let random = Direction::Random { seed: 9 };
        let mut case = Case::new(
            shape(2, 2, 500, 64, Dtype::F16),
            Policy { direction: random, ..policy(Score::External(kind), 0.4) },
        );
        (case.data, case.lengths, case.appended) = (Data::Special, vec![430, 77], vec![70, 300]);
        run(&case);
    }
}

/// Scores and sums kept in the state: by every way to add, over skipped layers and windows, in every order.
#[test]
fn kept_scores_of_keydiff() {
    let gpu = gpu();
    for (selector, order) in [(Selector::Radix, Order::Fill), (Selector::Bitonic, Order::Positional)] {
        for (dtype, head_dim) in [(Dtype::F16, 64), (Dtype::F32, 80), (Dtype::Bf16, 264), (Dtype::F8E4M3, 48)] {
            for (subgroups, direction) in
                [(Switch::Auto, Direction::Lowest), (Switch::Off, Direction::Highest), (Switch::On, Direction::Lowest)]
            {
                let policy = Policy { cached_norms: true, selector, order, direction, ..policy(Score::KeyDiff, 0.4) };
                let mut case = Case::new(shape(3, 2, 1400, head_dim, dtype), policy);
                case.options = Options::with_subgroups(subgroups);
                case.shape.num_layers = 3;
                case.policy.skip_layers = vec![1];
                (case.policy.sinks, case.policy.recent) = (2, 17);
                case.data = Data::Special;
                (case.lengths, case.active) = (vec![800, 30, 300], vec![true, true, false]);
                case.appended = vec![500, 600, 0];
                run_running(gpu, &case, &BUILT);
                if dtype == Dtype::F16 {
                    case.options.max_binding_bytes = Some(1 << 18);
                    run_running(gpu, &case, &BUILT);
                    case.options.max_binding_bytes = None;
                    case.paged = Some(Paged::new(8, PageLayout::Hnd));
                    run_running(gpu, &case, &BUILT);
                }
            }
        }
    }
    let mut case =
        Case::new(shape(2, 1, 20_000, 16, Dtype::F16), Policy { cached_norms: true, ..policy(Score::KeyDiff, 0.5) });
    (case.lengths, case.appended) = (vec![17_500, 9_000], vec![2_000, 1]);
    run_running(gpu, &case, &BUILT);
    // A preset for a decode loop.
    let preset = Policy { cached_norms: true, min_len: 100, ..Policy::keydiff(Budget::keep_ratio(0.5)) };
    let mut case = Case::new(shape(1, 2, 300, 64, Dtype::F16), preset);
    case.policy.skip_layers.clear();
    (case.lengths, case.appended) = (vec![99], vec![150]);
    run_running(gpu, &case, &BUILT);
}

/// Windows hold rows whose keys and values fit a binding, and their scores too: here a row's take over half of one, and
/// two sequences' lie apart.
#[test]
fn scores_of_the_callers_by_windows() {
    for order in [Order::Fill, Order::Positional] {
        let policy =
            Policy { order, score: Score::External(ExternalScore::F32), ..Policy::new(Budget::keep_ratio(0.4)) };
        let mut case = Case::new(shape(3, 5, 1000, 16, Dtype::F16), policy);
        case.lengths = vec![1000, 0, 731];
        case.options.max_binding_bytes = Some(1 << 16);
        run_external(gpu(), &case, ExternalScore::F32, &BUILT);
    }
}
