//! Rows at and beyond the largest binding that WebGPU promises, which is lavapipe's; scratch and norms beyond a smaller one.

use std::sync::OnceLock;

use keynorm::{Budget, Dtype, KvView, Order, Policy, Pool, TensorSpec};

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

/// A device of bindings of 1 MiB, which wgpu itself sees to, and its compressors.
fn tiny() -> (Gpu, Built) {
    (gpu_with(|limits| limits.max_storage_buffer_binding_size = 1 << 20), Built::default())
}

/// The counts of many pools of short rows, which are wider than the rows' own scratch.
#[test]
fn counts_of_pools_beyond_a_binding() {
    let (gpu, built) = tiny();
    let policy = Policy { pool: Some(Pool { min_tokens: 2 }), ..Policy::new(Budget::keep_ratio(0.5)) };
    let case = Case::new(shape(300, 3, 60, 16, Dtype::F16), policy);
    Fixture::built(&gpu, &case, &built).compress_and_compare(&gpu, &case, "900 rows of 1280 bytes");
}

/// A plan without cached norms on the state of one that has them, more than a binding of them.
#[test]
fn norms_of_another_plan_beyond_a_binding() {
    let (gpu, built) = tiny();
    let policy = Policy::new(Budget::keep_ratio(0.5));
    let mut case = Case::new(shape(1, 4, 30_000, 16, Dtype::F16), Policy { cached_norms: true, ..policy.clone() });
    case.shape.num_layers = 3;
    let mut fixture = Fixture::built(&gpu, &case, &built);
    let norms = fixture.state.key_norms().expect("a state with norms");
    assert!(norms.size() > 1 << 20, "{} bytes of norms", norms.size());
    case.policy = policy;
    let views: Vec<_> = fixture.buffers.iter().map(|b| KvView::hnd(&case.shape, &b[0], &b[1])).collect();
    let plan = built.compressor(&gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
    let workspace = plan.create_workspace().expect("a workspace");
    fixture.bound = plan.bind(&gpu.device, &views, &fixture.state, &workspace).expect("a binding");
    fixture.compress_and_compare(&gpu, &case, "without the norms");
}
