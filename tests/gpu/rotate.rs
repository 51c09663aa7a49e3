//! Keys turned to the positions of their slots, bit for bit against the reference, after one compression and after two.

use keynorm::{Budget, BudgetOverride, Dtype, Frequencies, Order, Pairing, Policy, Rope};

use crate::rotation::run_rotated;
use crate::support::{BUILT, Case, Data, Layout, gpu, shape};

fn positional(keep_ratio: f64) -> Policy {
    Policy { order: Order::Positional, sinks: 4, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

fn run(case: &Case, rope: &Rope) {
    run_rotated(gpu(), case, rope, &BUILT);
}

fn rope(rotary_dim: u32, pairing: Pairing) -> Rope {
    Rope { pairing, ..Rope::new(rotary_dim, 10_000.0) }
}

#[test]
fn every_dtype_and_pairing() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            for (head_dim, rotary_dim) in [(64, 64), (96, 24), (80, 32), (16, 4)] {
                for data in [Data::Random, Data::Special] {
                    let mut case = Case::new(shape(2, 3, 300, head_dim, dtype), positional(0.4));
                    (case.data, case.lengths) = (data, vec![290, 40]);
                    // The norms of turned f32 keys may differ by device in their last bits, and so the second choice.
                    if dtype != Dtype::F32 {
                        case.appended = vec![10, 200];
                    }
                    run(&case, &rope(rotary_dim, pairing));
                }
            }
        }
    }
}

/// NaN, infinities and what overflows are kept, and keep their bits or become infinite.
#[test]
fn keys_that_are_not_finite() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let mut case = Case::new(shape(2, 2, 300, 64, dtype), positional(0.98));
            case.policy.sinks = 0;
            case.data = Data::Special;
            run(&case, &rope(64, pairing));
        }
    }
}

/// Elements enough that some lie halfway between two numbers of 16 bits.
#[test]
fn ties_go_to_even() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        run(&Case::new(shape(1, 2, 9000, 64, dtype), positional(0.7)), &rope(64, Pairing::HalfSplit));
    }
}

#[test]
fn scaled_frequencies_and_tables() {
    let mut case = Case::new(shape(1, 2, 2000, 32, Dtype::F32), positional(0.1));
    let frequencies = Frequencies::Base { base: 500_000.0, linear_factor: 8.0 };
    run(&case, &Rope { frequencies, ..rope(32, Pairing::HalfSplit) });
    // Pairs that turn more than once a position, and hardly at all.
    let table = (0..16).map(|i| 7.5 / 10.0_f64.powi(i)).collect();
    case.shape.keys.dtype = Dtype::F16;
    run(&case, &Rope { frequencies: Frequencies::Table(table), ..rope(32, Pairing::Interleaved) });
}

#[test]
fn layouts_layers_and_windows() {
    for layout in [Layout::Nhd, Layout::Offset { words: 3, pad_elements: 2 }, Layout::Interleaved { words: 5 }] {
        let mut case = Case::new(shape(2, 2, 200, 64, Dtype::F16), positional(0.5));
        case.layout = layout;
        case.shape.num_layers = 4;
        case.policy.skip_layers = vec![1];
        (case.lengths, case.appended, case.active) = (vec![180, 77], vec![20, 9], vec![true, false]);
        run(&case, &rope(64, Pairing::HalfSplit));
    }
    let mut case = Case::new(shape(3, 5, 300, 64, Dtype::F16), positional(0.5));
    case.options.max_binding_bytes = Some(1 << 17);
    run(&case, &rope(64, Pairing::Interleaved));
}

/// Heads of different lengths end level, so that the next token has one position for all of them.
#[test]
fn heads_of_different_lengths_end_level() {
    let mut case = Case::new(shape(2, 3, 300, 64, Dtype::Bf16), positional(0.5));
    case.policy.budgets = vec![BudgetOverride { layers: 0..1, heads: 1..2, budget: Budget::KeepTokens(30) }];
    (case.lengths, case.appended) = (vec![250, 100], vec![50, 50]);
    run(&case, &rope(64, Pairing::HalfSplit));
}
