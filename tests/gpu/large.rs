//! Rows at and beyond the largest binding that WebGPU promises, which is lavapipe's.

use std::sync::OnceLock;

use keynorm::{Budget, Dtype, Order, Policy, TensorSpec};

use crate::support::{Built, Case, Data, Fixture, Gpu, gpu_with, shape};

const BINDING: u64 = 128 << 20;

/// A device of every test here, whose bindings are no larger.
fn small() -> &'static (Gpu, Built) {
    static SMALL: OnceLock<(Gpu, Built)> = OnceLock::new();
    SMALL.get_or_init(|| (gpu_with(|limits| limits.max_storage_buffer_binding_size = BINDING), Built::default()))
}

/// One row of keys of 256 bytes a token.
fn run(capacity: u32, order: Order, keep_ratio: f64) {
    let (gpu, built) = small();
    let policy = Policy { order, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
    let mut case = Case::new(shape(1, 1, capacity, 128, Dtype::F16), policy);
    case.shape.values = TensorSpec::new(Dtype::F16, 16);
    case.data = Data::Sparse;
    Fixture::built(gpu, &case, built).compress_and_compare(gpu, &case, "large");
}

#[test]
fn a_row_of_exactly_a_binding() {
    let tokens = u32::try_from(BINDING / 256).expect("a number of tokens");
    run(tokens, Order::Fill, 0.5);
}

#[test]
fn a_row_of_one_token_more_than_a_binding() {
    let tokens = u32::try_from(BINDING / 256).expect("a number of tokens");
    run(tokens + 1, Order::Positional, 0.5);
}

/// 256 MiB of keys in one row.
#[test]
fn a_million_tokens_in_one_row() {
    run(1 << 20, Order::Fill, 0.6);
    run(1 << 20, Order::Positional, 0.6);
}
