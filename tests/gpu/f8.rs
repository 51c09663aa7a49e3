//! Keys and values of one byte an element, whose rows are half as many chunks as those of f16.

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Score, Selector, Switch, TensorSpec};

use crate::support::{Case, Data, Layout, PageLayout, Paged, run, shape};

const DTYPES: [Dtype; 2] = [Dtype::F8E4M3, Dtype::F8E5M2];
const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const SWITCHES: [Switch; 3] = [Switch::Auto, Switch::Off, Switch::On];
const SCORES: [Score; 4] = [Score::KeyNorm, Score::KeyDiff, Score::Centroid, Score::ValueKeyRatio];

fn case(dtype: Dtype, head_dim: u32, score: Score) -> Case {
    let policy = Policy { score, ..Policy::new(Budget::keep_ratio(0.45)) };
    let mut case = Case::new(shape(2, 3, 600, head_dim, dtype), policy);
    case.lengths = vec![301, 77];
    case.appended = vec![20, 500];
    case
}

#[test]
fn every_selector_and_order() {
    for dtype in DTYPES {
        for selector in [Selector::Auto, Selector::Radix, Selector::Bitonic] {
            for (order, subgroups) in ORDERS.into_iter().flat_map(|o| SWITCHES.map(|s| (o, s))) {
                let mut case = case(dtype, 128, Score::KeyNorm);
                (case.policy.selector, case.policy.order) = (selector, order);
                case.options = Options::with_subgroups(subgroups);
                run(&case);
            }
        }
    }
}

/// From one chunk a token to a chunk for each of 32 lanes.
#[test]
fn head_dims_and_scores() {
    let mut dtypes = DTYPES.into_iter().cycle();
    for score in SCORES {
        for head_dim in [16, 80, 128, 272, 512] {
            for (subgroups, dtype) in SWITCHES.into_iter().zip(dtypes.by_ref()) {
                let mut case = case(dtype, head_dim, score);
                case.options = Options::with_subgroups(subgroups);
                run(&case);
            }
        }
    }
}

#[test]
fn data_kinds_and_directions() {
    for score in SCORES {
        for data in [Data::Ties, Data::AllEqual, Data::Special, Data::Scaled { power: 6 }, Data::Scaled { power: -6 }] {
            for direction in [Direction::Lowest, Direction::Highest, Direction::Random { seed: 5 }] {
                for dtype in DTYPES {
                    let mut case = case(dtype, 64, score);
                    (case.data, case.policy.direction) = (data, direction);
                    (case.policy.sinks, case.policy.recent) = (4, 20);
                    run(&case);
                }
            }
        }
    }
}

/// Rows of whole 16-byte chunks that begin on boundaries of 4; values of another dtype, of which rows are longer.
#[test]
fn layouts_and_other_values() {
    let offset = Layout::Offset { words: 37, pad_elements: 4 };
    for layout in [Layout::Hnd, Layout::Nhd, offset, Layout::Interleaved { words: 3 }, Layout::Touching] {
        for (dtype, score) in DTYPES.into_iter().flat_map(|d| SCORES.map(|s| (d, s))) {
            let mut case = case(dtype, 80, score);
            case.layout = layout;
            run(&case);
            if !matches!(layout, Layout::Interleaved { .. }) {
                case.shape.values = TensorSpec::new(Dtype::Bf16, 72);
                run(&case);
            }
        }
    }
}

/// First digits counted with the score, tiles of a row, and cached norms.
#[test]
fn long_rows_and_cached_norms() {
    for (dtype, order) in DTYPES.into_iter().flat_map(|d| ORDERS.map(|o| (d, o))) {
        for (cached, (capacity, lengths)) in [(false, (20_000, [19_000, 9001])), (true, (600, [301, 77]))] {
            let mut case = Case::new(shape(2, 1, capacity, 32, dtype), case(dtype, 32, Score::KeyNorm).policy);
            (case.policy.order, case.policy.cached_norms) = (order, cached);
            case.lengths = lengths.to_vec();
            case.appended = vec![capacity / 20, 3];
            run(&case);
        }
    }
}

#[test]
fn pages() {
    for (dtype, layout) in DTYPES.into_iter().zip([PageLayout::Hnd, PageLayout::Nhd]) {
        for (order, score) in ORDERS.into_iter().flat_map(|o| SCORES.map(|s| (o, s))) {
            let mut case = case(dtype, 48, score);
            case.policy.order = order;
            case.paged = Some(Paged::new(8, layout));
            run(&case);
        }
    }
}
