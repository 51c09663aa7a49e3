//! Rows of thousands of tokens: every path by which the radix selector finds a threshold, and the moves of `Positional`
//! by ranges.

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Score, Selector, Stages, Switch};

use crate::support::{Built, Case, Data, Fixture, gpu, gpu_of_small_workgroups, run, shape, submit};

const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const DIRECTIONS: [Direction; 3] =
    [Direction::Lowest, Direction::Highest, Direction::Random { seed: 0x1234_5678_9abc_def0 }];

/// By how the bin of the threshold is narrowed. Rows of 20,000 have in it:
const DATA: [Data; 7] = [
    Data::Random,               // a few keys, ranked against each other
    Data::Near { spread: 2 },   // hundreds, narrowed digit by digit
    Data::Near { spread: 0 },   // all, sorted by the next digit
    Data::AllEqual,             // all, known to be equal
    Data::Scaled { power: -6 }, // thousands, in a wide bin before the window of first digits
    Data::Scaled { power: 9 },  // thousands, in one after it
    Data::Special,              // those among zeros, infinities and NaN
];

fn radix(keep_ratio: f64, order: Order) -> Policy {
    Policy { selector: Selector::Radix, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

fn case(lengths: &[u32], dtype: Dtype, policy: Policy) -> Case {
    let capacity = lengths.iter().copied().max().unwrap_or(1);
    let mut case = Case::new(shape(u32::try_from(lengths.len()).expect("few"), 1, capacity, 16, dtype), policy);
    case.lengths = lengths.to_vec();
    case
}

/// In one workgroup, of 512 or 1024 invocations.
#[test]
fn rows_of_one_workgroup() {
    for lengths in [[2049, 4096], [4097, 8192], [8191, 2048]] {
        for (data, order) in DATA.into_iter().zip(ORDERS.into_iter().cycle()) {
            for direction in DIRECTIONS {
                let mut case = case(&lengths, Dtype::F16, radix(0.5, order));
                case.policy.direction = direction;
                case.data = data;
                run(&case);
            }
        }
    }
}

/// By two eights of tokens an invocation, of workgroups of 1024 and of 256.
#[test]
fn rows_of_two_eights() {
    let small = gpu_of_small_workgroups();
    let built = Built::default();
    let kinds = [Switch::On, Switch::Off].into_iter().flat_map(|s| DIRECTIONS.map(|direction| (s, direction)));
    for (subgroups, direction) in kinds {
        for (data, order) in DATA.into_iter().flat_map(|data| ORDERS.map(|order| (data, order))) {
            let case = |lengths: &[u32]| {
                let mut case = case(lengths, Dtype::F16, radix(0.5, order));
                case.options = Options::with_subgroups(subgroups);
                (case.policy.direction, case.data) = (direction, data);
                case
            };
            // Ends within the second tile, at its end, and within the first.
            run(&case(&[16_384, 8193, 100]));
            let case = case(&[2049, 4096]);
            Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "256 invocations");
        }
    }
}

/// By dispatches that follow each other. The stages apart count first digits in the selector.
#[test]
fn rows_of_many_workgroups() {
    let gpu = gpu();
    for data in DATA {
        for (direction, order) in DIRECTIONS.into_iter().flat_map(|d| ORDERS.map(|o| (d, o))) {
            let mut case = case(&[20_000, 8193], Dtype::F16, radix(0.3, order));
            case.policy.direction = direction;
            case.data = data;
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

/// Rows of more tiles than workgroups, which take them in turn, beside one of fewer tiles and one that is left alone; twice,
/// so that the second round finds the counts of the first.
#[test]
fn taken_tiles() {
    let gpu = gpu();
    for subgroups in [Switch::On, Switch::Off] {
        for score in [Score::KeyNorm, Score::ValueKeyRatio] {
            for order in ORDERS {
                let policy = Policy { score, ..radix(0.5, order) };
                let mut case = Case::new(shape(4, 4, 17_000, 64, Dtype::F16), policy);
                case.options = Options::with_subgroups(subgroups);
                case.lengths = vec![17_000, 16_500, 300, 17_000];
                case.active = vec![true, true, true, false];
                case.appended = vec![8500, 8750, 140, 0];
                let mut fixture = Fixture::new(gpu, &case);
                fixture.compress_and_compare(gpu, &case, "first");
                fixture.append(gpu, &case);
                fixture.compress_and_compare(gpu, &case, "second");
            }
        }
    }
}

/// A bin of so many keys that tiles sort them: of one digit before or after the window; of those beyond all bins.
#[test]
fn sorted_bins() {
    for (data, keep_ratio) in
        [(Data::Scaled { power: -6 }, 0.5), (Data::Scaled { power: 9 }, 0.3), (Data::Special, 0.95)]
    {
        for order in ORDERS {
            let mut case = case(&[60_000, 59_000], Dtype::F16, radix(keep_ratio, order));
            case.data = data;
            run(&case);
        }
    }
}

#[test]
fn bitonic_agrees_on_long_rows() {
    for data in DATA {
        for (direction, order) in DIRECTIONS.into_iter().zip(ORDERS.into_iter().cycle()) {
            let mut case = case(&[9000, 4097], Dtype::Bf16, radix(0.4, order));
            case.policy.selector = Selector::Bitonic;
            case.policy.direction = direction;
            case.data = data;
            run(&case);
        }
    }
}

/// The lengths of a first walk, and the most ranges that follow it, are others on CPUs than elsewhere.
const RANGE_RULES: [Switch; 2] = [Switch::Auto, Switch::Off];

/// Budgets beyond what the first walk takes: on GPUs by one range, two, seven and 30 after walks of 4096 ranks to 32768,
/// and by none.
#[test]
fn positional_by_ranges() {
    for (lengths, keep_ratio) in [
        ([60_000, 9000], 0.5),
        ([30_000, 29_999], 0.3),
        ([20_000, 17_000], 0.8),
        ([17_000, 16_000], 0.5),
        ([20_000, 19_000], 0.9),
        ([100_000, 90_000], 0.8),
        ([300_000, 9000], 0.93),
    ] {
        for (direction, subgroups) in DIRECTIONS.into_iter().flat_map(|d| RANGE_RULES.map(|s| (d, s))) {
            let mut case = case(&lengths, Dtype::F16, radix(keep_ratio, Order::Positional));
            case.shape.values.head_dim = 24;
            case.policy.direction = direction;
            case.options = Options::with_subgroups(subgroups);
            run(&case);
        }
    }
}

/// Rows that ranges do not serve as expected.
#[test]
fn positional_by_ranges_of_other_lengths() {
    for subgroups in RANGE_RULES {
        let case = |lengths: &[u32], budget| {
            let mut case = case(lengths, Dtype::F16, Policy { order: Order::Positional, ..Policy::new(budget) });
            case.options = Options::with_subgroups(subgroups);
            case
        };
        // The second row moves by less than 200 slots, so that ranges are short and the last walk takes the rest.
        run(&case(&[40_000, 12_000], Budget::KeepTokens(11_900)));
        // The first row to move lies beyond the first walk; at the end of the budget; nowhere.
        for sinks in [1500, 9000, 30_000, 60_000] {
            let mut case = case(&[60_000, 30_001], Budget::keep_ratio(0.5));
            case.policy.sinks = sinks;
            run(&case);
        }
        // Rows move from the end by one distance.
        let mut case = case(&[60_000, 54_000], Budget::KeepTokens(30_000));
        case.policy.recent = 29_900;
        case.active = vec![true, false];
        run(&case);
        case.active.clear();
        (case.lengths, case.appended) = (vec![59_000, 3000], vec![1000, 54_000]);
        run(&case);
    }
}

/// More tiles than the workgroups of `emit` have invocations; and than that of `settle`.
#[test]
fn a_row_of_half_a_million() {
    let small = gpu_of_small_workgroups();
    let built = Built::default();
    for (data, order) in [
        (Data::Random, Order::Fill),
        (Data::Ties, Order::Positional),
        (Data::Near { spread: 0 }, Order::Fill),
        (Data::Scaled { power: 9 }, Order::Positional),
    ] {
        let mut case = case(&[540_000], Dtype::F16, radix(0.5, order));
        case.data = data;
        run(&case);
        Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "256 invocations");
    }
}
