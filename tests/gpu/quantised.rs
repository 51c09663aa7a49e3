//! Quantised rows: norms of the dequantised keys, bit for bit as the reference's, and rows that move unchanged.

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Score, Selector, Switch, TensorSpec};

use crate::support::{Case, Data, Layout, PageLayout, Paged, run, shape};

const DTYPES: [Dtype; 3] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::I8Scaled];
const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const SELECTORS: [Selector; 2] = [Selector::Radix, Selector::Bitonic];

fn policy(keep_ratio: f64, selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

fn case(dtype: Dtype, head_dim: u32, order: Order) -> Case {
    let mut case = Case::new(shape(2, 3, 301, head_dim, dtype), policy(0.5, Selector::Auto, order));
    case.lengths = vec![280, 130];
    case.appended = vec![21, 1];
    case
}

#[test]
fn every_selector_and_order() {
    for dtype in DTYPES {
        for selector in SELECTORS {
            for order in ORDERS {
                for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
                    let mut case = case(dtype, 128, order);
                    case.policy.selector = selector;
                    case.options = Options::with_subgroups(subgroups);
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn head_dims() {
    for (dtype, head_dims) in [
        (Dtype::Q8_0, &[64, 192, 256, 512][..]),
        (Dtype::Q4_0, &[64, 320, 512]),
        (Dtype::I8Scaled, &[16, 24, 40, 104, 512]),
    ] {
        for &head_dim in head_dims {
            for subgroups in [Switch::Auto, Switch::Off] {
                let mut case = case(dtype, head_dim, Order::Fill);
                case.options = Options::with_subgroups(subgroups);
                run(&case);
            }
            run(&case(dtype, head_dim, Order::Positional));
        }
    }
}

#[test]
fn data_kinds_and_directions() {
    for dtype in DTYPES {
        for data in [Data::Special, Data::Ties, Data::AllEqual, Data::Scaled { power: -9 }, Data::Scaled { power: 9 }] {
            for direction in [Direction::Lowest, Direction::Highest] {
                for subgroups in [Switch::Auto, Switch::Off] {
                    let mut case = case(dtype, 64, Order::Fill);
                    case.data = data;
                    case.policy.direction = direction;
                    case.options = Options::with_subgroups(subgroups);
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn layouts_and_other_values() {
    let f16 = TensorSpec::new(Dtype::F16, 40);
    for dtype in DTYPES {
        for order in ORDERS {
            for layout in [
                Layout::Nhd,
                Layout::Touching,
                Layout::Interleaved { words: 3 },
                Layout::Offset { words: 5, pad_elements: 12 },
            ] {
                let mut case = case(dtype, 64, order);
                case.layout = layout;
                run(&case);
                // Values bound with the keys end in another place than they.
                if layout != (Layout::Interleaved { words: 3 }) {
                    case.shape.values = f16;
                    run(&case);
                    (case.shape.keys, case.shape.values) = (f16, case.shape.keys);
                    case.shape.values = TensorSpec::new(dtype, 128);
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn pages_bands_and_long_rows() {
    for (dtype, layout) in DTYPES.into_iter().zip([PageLayout::OnePool, PageLayout::Nhd, PageLayout::Hnd]) {
        for order in ORDERS {
            let mut paged = case(dtype, 64, order);
            paged.shape.capacity = 304;
            paged.paged = Some(Paged::new(16, layout));
            run(&paged);
            let mut bands = case(dtype, 128, order);
            bands.shape.capacity = 1500;
            bands.lengths = vec![1400, 900];
            bands.options.max_binding_bytes = Some(1 << 16);
            run(&bands);
            let mut long = case(dtype, 64, order);
            long.shape.capacity = 12_000;
            long.lengths = vec![11_900, 9000];
            run(&long);
        }
    }
}

#[test]
fn cached_norms_and_ratios() {
    for dtype in DTYPES {
        let mut case = case(dtype, 128, Order::Positional);
        case.policy.cached_norms = true;
        run(&case);
        case.policy.cached_norms = false;
        case.policy.score = Score::ValueKeyRatio;
        run(&case);
        case.shape.values = TensorSpec::new(Dtype::Bf16, 80);
        run(&case);
    }
}
