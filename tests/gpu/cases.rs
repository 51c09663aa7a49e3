//! The table of cases.

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Selector, Switch};

use crate::support::{Case, Data, Fixture, Layout, download, gpu, run, shape};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const SELECTORS: [Selector; 3] = [Selector::Auto, Selector::Radix, Selector::Bitonic];
const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];

fn policy(keep_ratio: f64, selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

#[test]
fn every_dtype_selector_and_order() {
    for dtype in DTYPES {
        for selector in SELECTORS {
            for order in ORDERS {
                for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
                    let mut case = Case::new(shape(2, 3, 301, 128, dtype), policy(0.5, selector, order));
                    case.options = Options::with_subgroups(subgroups);
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn head_dims() {
    for head_dim in [16, 24, 64, 80, 96, 112, 192, 256, 512] {
        for dtype in DTYPES {
            run(&Case::new(shape(1, 2, 130, head_dim, dtype), policy(0.3, Selector::Auto, Order::Fill)));
            run(&Case::new(shape(1, 2, 130, head_dim, dtype), policy(0.7, Selector::Auto, Order::Positional)));
        }
    }
}

/// Tokens of 2 to 32 lanes by every way to add them; subgroups are wide enough for some.
#[test]
fn subgroups_and_lanes() {
    for head_dim in [16, 24, 64, 128, 256] {
        for dtype in DTYPES {
            for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
                let policy = policy(0.4, Selector::Auto, Order::Fill);
                let mut case = Case::new(shape(1, 2, 131, head_dim, dtype), policy);
                case.options = Options::with_subgroups(subgroups);
                case.data = Data::Special;
                run(&case);
            }
        }
    }
}

/// Rows of 3 to 40 chunks that divide no workgroup: moved by as many lanes, and in slices of which the last may be narrower; of
/// few rows in narrow ones, of 24 in ones of at most 16, of 40 whole, of 96 in halves.
#[test]
fn chunks_that_divide_no_workgroup() {
    let head_dims = [(24, 40), (80, 160), (96, 112), (320, 192)];
    for (head_dim, head_dim_of_values) in head_dims {
        for subgroups in [Switch::Off, Switch::On] {
            for (selector, order) in SELECTORS[..2].iter().flat_map(|&s| ORDERS.map(|o| (s, o))) {
                let mut case = Case::new(shape(1, 2, 1100, head_dim, Dtype::F16), policy(0.6, selector, order));
                case.shape.values.head_dim = head_dim_of_values;
                case.options = Options::with_subgroups(subgroups);
                run(&case);
            }
        }
    }
    for num_heads in [24, 40, 96] {
        for (head_dim, head_dim_of_values) in [(160, 80), (96, 192), (176, 176)] {
            let policy = policy(0.6, Selector::Radix, Order::Positional);
            let mut case = Case::new(shape(1, num_heads, 1100, head_dim, Dtype::F16), policy);
            case.shape.values.head_dim = head_dim_of_values;
            case.options = Options::with_subgroups(Switch::Off);
            run(&case);
        }
    }
}

/// Rows that are moved by words, of which a lane takes one to four, apart from each other: on boundaries of four bytes, keys and
/// values in buffers of their own or bound once, and in bands.
#[test]
fn words_apart() {
    let specs = [(Dtype::F16, 24), (Dtype::F16, 160), (Dtype::F16, 176), (Dtype::F16, 192), (Dtype::F32, 192)];
    let quantised = [(Dtype::Q8_0, 512), (Dtype::Q4_0, 320), (Dtype::I8Scaled, 512)];
    for (dtype, head_dim) in specs.into_iter().chain(quantised) {
        for order in ORDERS {
            let layouts = [Layout::Offset { words: 1, pad_elements: 4 }, Layout::Interleaved { words: 5 }];
            for (layout, head_dims) in layouts.iter().flat_map(|&l| [(l, (head_dim, 64)), (l, (64, head_dim))]) {
                let mut case = Case::new(shape(1, 2, 700, head_dim, dtype), policy(0.6, Selector::Auto, order));
                (case.shape.keys.head_dim, case.shape.values.head_dim) = head_dims;
                (case.layout, case.options) = (layout, Options::with_subgroups(Switch::Off));
                run(&case);
                case.options.max_binding_bytes = Some(1 << 16);
                run(&case);
            }
        }
    }
}

#[test]
fn layouts() {
    let layouts = [
        Layout::Nhd,
        Layout::TokenMajor,
        Layout::Offset { words: 1, pad_elements: 2 },
        Layout::Offset { words: 3, pad_elements: 0 },
        Layout::Offset { words: 36, pad_elements: 8 },
        Layout::Interleaved { words: 0 },
        Layout::Interleaved { words: 5 },
        Layout::Touching,
    ];
    for layout in layouts {
        for order in ORDERS {
            let mut case = Case::new(shape(2, 3, 70, 64, Dtype::F16), policy(0.4, Selector::Auto, order));
            case.layout = layout;
            run(&case);
        }
    }
}

#[test]
fn lengths_and_budgets() {
    for selector in SELECTORS {
        for order in ORDERS {
            for lengths in [[0, 1], [2, 3], [255, 256], [257, 64], [300, 0]] {
                for budget in [0.0, 0.1, 0.5, 0.98, 1.0] {
                    let mut case = Case::new(shape(2, 2, 300, 16, Dtype::F16), policy(budget, selector, order));
                    case.lengths = lengths.to_vec();
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn data_kinds_and_directions() {
    for data in [Data::Ties, Data::AllEqual, Data::Special] {
        for dtype in DTYPES {
            for direction in [Direction::Lowest, Direction::Highest, Direction::Random { seed: 0x1234_5678_9abc_def0 }]
            {
                for selector in SELECTORS {
                    let mut case = Case::new(shape(1, 2, 400, 32, dtype), policy(0.5, selector, Order::Fill));
                    case.policy.direction = direction;
                    case.data = data;
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn long_rows() {
    for selector in SELECTORS {
        for order in ORDERS {
            for data in [Data::Random, Data::Ties] {
                let mut case = Case::new(shape(2, 1, 20_000, 16, Dtype::F16), policy(0.5, selector, order));
                case.lengths = vec![20_000, 17_001];
                case.data = data;
                run(&case);
            }
        }
    }
}

#[test]
fn second_compression_goes_on_from_the_first() {
    for selector in SELECTORS {
        for order in ORDERS {
            for (sinks, recent) in [(0, 0), (4, 64), (1, 0), (0, 33), (1, u32::MAX)] {
                let mut case = Case::new(shape(2, 2, 400, 64, Dtype::Bf16), policy(0.5, selector, order));
                case.policy.sinks = sinks;
                case.policy.recent = recent;
                case.lengths = vec![300, 41];
                case.appended = vec![100, 17];
                run(&case);
            }
        }
    }
}

#[test]
fn several_layers_with_some_left_whole() {
    for order in ORDERS {
        let mut case = Case::new(shape(2, 2, 200, 64, Dtype::F16), policy(0.5, Selector::Auto, order));
        case.shape.num_layers = 5;
        case.policy.skip_layers = vec![0, 2];
        case.lengths = vec![150, 77];
        case.appended = vec![50, 3];
        run(&case);
    }
}

#[test]
fn windows_of_whole_rows() {
    for order in ORDERS {
        let mut case = Case::new(shape(3, 5, 300, 64, Dtype::F16), policy(0.5, Selector::Auto, order));
        case.options.max_binding_bytes = Some(1 << 17);
        run(&case);
        case.shape.num_layers = 3;
        case.policy.skip_layers = vec![1];
        run(&case);
    }
}

/// Rows larger than a binding, in bands of their tokens: rows apart, heads side by side, at any alignment.
#[test]
fn bands_of_rows() {
    let layouts = [
        Layout::Hnd,
        Layout::Nhd,
        Layout::TokenMajor,
        Layout::Offset { words: 1, pad_elements: 2 },
        Layout::Interleaved { words: 4 },
        Layout::Touching,
    ];
    for (layout, selector) in layouts.into_iter().zip(SELECTORS.into_iter().cycle()) {
        for order in ORDERS {
            let mut case = Case::new(shape(2, 3, 1900, 64, Dtype::F16), policy(0.6, selector, order));
            case.options.max_binding_bytes = Some(1 << 16);
            case.layout = layout;
            case.lengths = vec![1900, 1200];
            case.appended = vec![700, 3];
            case.lengths[0] -= 700;
            run(&case);
            case.policy.cached_norms = true;
            run(&case);
        }
    }
}

/// Which tokens of a row that is longer than was said are kept is undefined, but each keeps its key and its value.
#[test]
fn bands_of_rows_longer_than_said() {
    let gpu = gpu();
    for (order, selector) in ORDERS.into_iter().flat_map(|order| SELECTORS.map(|selector| (order, selector))) {
        let mut case = Case::new(shape(1, 2, 2000, 64, Dtype::F16), policy(0.5, selector, order));
        case.options.max_binding_bytes = Some(1 << 16);
        case.lengths = vec![1500];
        let fixture = Fixture::new(gpu, &case);
        let kept = pollster::block_on(fixture.bound.compress(&gpu.device, &gpu.queue, 600)).expect("a record");
        for (tensor, before) in fixture.host[0].buffers.iter().enumerate() {
            let got = download(gpu, &fixture.buffers[0][tensor]);
            for (row, positions) in kept.layers[0].positions.iter().enumerate() {
                for (slot, &position) in positions.iter().enumerate() {
                    let at = |token: usize| (row * 2000 + token) * 128..(row * 2000 + token + 1) * 128;
                    let (got, expected) = (&got[at(slot)], &before[at(position as usize)]);
                    assert!(got == expected, "tensor {tensor}, row {row}, slot {slot}: {order:?}, {selector:?}");
                }
            }
        }
    }
}

#[test]
fn bands_of_one_tensor_alone() {
    for order in ORDERS {
        for head_dims in [(64, 16), (16, 64)] {
            for keep_ratio in [0.0, 0.05, 0.97, 1.0] {
                let mut case = Case::new(shape(1, 2, 1500, 64, Dtype::Bf16), policy(keep_ratio, Selector::Auto, order));
                (case.shape.keys.head_dim, case.shape.values.head_dim) = head_dims;
                case.shape.num_layers = 2;
                case.options.max_binding_bytes = Some(1 << 16);
                case.policy.recent = 40;
                run(&case);
            }
        }
    }
}

#[test]
fn keys_and_values_differ() {
    let mut case = Case::new(shape(2, 2, 150, 192, Dtype::F16), policy(0.5, Selector::Auto, Order::Fill));
    case.shape.values = keynorm::TensorSpec::new(Dtype::F32, 128);
    for order in ORDERS {
        case.policy.order = order;
        run(&case);
    }
}
