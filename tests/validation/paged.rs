//! What `bind_paged` refuses, and what it binds.

use keynorm::{
    BuildError, Dtype, ExternalScore, KvShape, Order, PageShape, PageTable, PagedKvView, Plan, Policy, Score, Strides,
    TensorSpec, TensorView,
};

use crate::support::{Noop, assert_error, assert_records, noop, noop_with, policy, shape};

/// 2 sequences of 3 heads, 4 pages of 16 tokens each; pools of 10 pages.
fn paged_shape() -> KvShape {
    KvShape { capacity: 64, ..shape() }
}

const PAGES: PageShape = PageShape { page_size: 16, num_pages: 10, has_sentinel: false };

/// Bytes of a pool of keys.
const POOL: u64 = 10 * 3 * 16 * 128;

struct Draft {
    pages: PageShape,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    table: wgpu::Buffer,
    keys_offset: u64,
    values_offset: u64,
    strides: Strides,
    table_offset: u64,
    table_stride: u64,
    views: usize,
}

impl Draft {
    fn new(noop: &Noop) -> Self {
        Self {
            pages: PAGES,
            keys: noop.storage(POOL),
            values: noop.storage(POOL),
            table: noop.storage(32),
            keys_offset: 0,
            values_offset: 0,
            strides: Strides::hnd(3, 16, 64),
            table_offset: 0,
            table_stride: 4,
            views: 1,
        }
    }

    fn bind(&self, noop: &Noop, plan: &Plan) -> Result<keynorm::Bound, BuildError> {
        let view = |buffer, offset_bytes| TensorView { buffer, offset_bytes, strides: self.strides };
        let table = PageTable { buffer: &self.table, offset_bytes: self.table_offset, stride: self.table_stride };
        let view = PagedKvView {
            keys: view(&self.keys, self.keys_offset),
            values: view(&self.values, self.values_offset),
            table,
        };
        let (state, workspace) = (plan.create_state()?, plan.create_workspace()?);
        plan.bind_paged(&noop.device, &self.pages, &vec![view; self.views], &state, &workspace)
    }
}

type Edit = fn(&Noop, &mut Draft);

const REFUSED: &[(&str, Edit, &str)] = &[
    ("no page size", |_, d| d.pages.page_size = 0, "PageSize { got: 0 }"),
    ("4 tokens", |_, d| d.pages.page_size = 4, "PageSize { got: 4 }"),
    ("12 tokens", |_, d| d.pages.page_size = 12, "PageSize { got: 12 }"),
    ("264 tokens", |_, d| d.pages.page_size = 264, "PageSize { got: 264 }"),
    ("part of a page", |_, d| d.pages.page_size = 24, "PartialPage { capacity: 64, page_size: 24 }"),
    ("no pages", |_, d| d.pages.num_pages = 0, r#"ZeroDimension { argument: "num_pages" }"#),
    (
        "one page more than the pool has",
        |_, d| d.pages.num_pages = 11,
        r#"OutsideBuffer { argument: "keys", end: 67584, buffer_bytes: 61440 }"#,
    ),
    (
        "more heads of pages than a u32 counts",
        |_, d| d.pages.num_pages = u32::MAX,
        r#"OutsideBuffer { argument: "keys", end: 26388279060480, buffer_bytes: 61440 }"#,
    ),
    (
        "more pages than bytes are counted",
        |_, d| (d.pages.num_pages, d.strides.batch) = (u32::MAX, 1 << 61),
        r#"AddressOverflow { argument: "keys" }"#,
    ),
    (
        "pages that overlap",
        |_, d| d.strides.batch -= 64,
        r#"OverlappingRows { argument: "keys", dimension: "batch", got: 3008, expected: 3072 }"#,
    ),
    ("keys as values", |_, d| d.values = d.keys.clone(), r#"Overlap { first: "keys", second: "values" }"#),
    ("no views", |_, d| d.views = 0, r#"WrongCount { argument: "views", got: 0, expected: 1 }"#),
    ("two views", |_, d| d.views = 2, r#"WrongCount { argument: "views", got: 2, expected: 1 }"#),
    (
        "a table without usage",
        |n, d| d.table = n.buffer(32, wgpu::BufferUsages::COPY_DST),
        r#"MissingUsage { argument: "table", missing: "STORAGE" }"#,
    ),
    (
        "a short table",
        |n, d| d.table = n.storage(28),
        r#"OutsideBuffer { argument: "table", end: 32, buffer_bytes: 28 }"#,
    ),
    (
        "a table beyond its end",
        |_, d| d.table_offset = 4,
        r#"OutsideBuffer { argument: "table", end: 36, buffer_bytes: 32 }"#,
    ),
    ("an odd table", |_, d| d.table_offset = 2, r#"Misaligned { argument: "table", got: 2 }"#),
    (
        "rows of a table that overlap",
        |_, d| d.table_stride = 3,
        r#"OverlappingRows { argument: "table", dimension: "batch", got: 3, expected: 4 }"#,
    ),
    (
        "a table in the keys",
        |_, d| (d.table, d.table_offset) = (d.keys.clone(), POOL - 32),
        r#"Overlap { first: "table", second: "keys" }"#,
    ),
];

#[test]
fn refused_bindings() {
    let noop = noop();
    let plan = noop.compressor().plan(&paged_shape(), &policy()).expect("a sound plan");
    for (name, edit, expected) in REFUSED {
        let mut draft = Draft::new(&noop);
        edit(&noop, &mut draft);
        assert_error(name, draft.bind(&noop, &plan), &format!("Argument({expected})"));
        assert_records(&noop, &plan, &Draft::new(&noop).bind(&noop, &plan).expect("a sound binding"));
    }
    let state = plan.create_state().expect("a state");
    let first = state.set_first_writable(&noop.queue, &[1, 2, 3]);
    assert_error("first writable", first, r#"WrongCount { argument: "first", got: 3, expected: 2 }"#);
}

#[test]
fn a_table_in_the_state() {
    let noop = noop();
    let plan = noop.compressor().plan(&paged_shape(), &policy()).expect("a sound plan");
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    let draft = Draft::new(&noop);
    let table = PageTable { buffer: state.meta(), offset_bytes: 0, stride: 4 };
    let view = PagedKvView::hnd(plan.shape(), &PAGES, &draft.keys, &draft.values, table);
    let bound = plan.bind_paged(&noop.device, &PAGES, &[view], &state, &workspace);
    assert_error("in the state", bound, r#"Argument(Overlap { first: "state.meta", second: "table" })"#);
}

#[test]
fn scores_of_the_callers() {
    let noop = noop();
    let external = Policy { score: Score::External(ExternalScore::F32), ..policy() };
    let plan = noop.compressor().plan(&paged_shape(), &external).expect("a sound plan");
    let draft = Draft::new(&noop);
    let none = r#"Argument(WrongCount { argument: "scores", got: 0, expected: 1 })"#;
    assert_error("none", draft.bind(&noop, &plan), none);
    let shape = plan.shape();
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    let table = PageTable { buffer: &draft.table, offset_bytes: draft.table_offset, stride: draft.table_stride };
    let view = PagedKvView::hnd(shape, &PAGES, &draft.keys, &draft.values, table);
    let words = u64::from(shape.rows_per_layer() * shape.capacity);
    let scores = noop.storage(words * 4);
    let strides = Strides::hnd(shape.num_kv_heads, shape.capacity, 1);
    let score = TensorView { buffer: &scores, offset_bytes: 0, strides };
    let bind = |scores| plan.bind_paged_with_scores(&noop.device, &PAGES, &[view], scores, &state, &workspace);
    assert_records(&noop, &plan, &bind(&[score]).expect("sound scores"));
    let (views, scored) = ([view], [score]);
    let later = plan.bind_paged_with_scores_async(&noop.device, &PAGES, &views, &scored, &state, &workspace);
    assert_records(&noop, &plan, &pollster::block_on(later).expect("sound scores"));
    // All scores of a layer in one binding.
    let small = noop.compressor_of_small_bindings().plan(&paged_shape(), &external).expect("a sound plan");
    let scores = noop.storage(1 << 17);
    let far = TensorView { buffer: &scores, strides: Strides { batch: 20_000, ..strides }, ..score };
    let (state, workspace) = (small.create_state().expect("a state"), small.create_workspace().expect("a workspace"));
    let refused = small.bind_paged_with_scores(&noop.device, &PAGES, &[view], &[far], &state, &workspace);
    let limit = r#"Argument(PoolExceedsBinding { argument: "scores", pool_bytes: 81024, limit: 65536 })"#;
    assert_error("far apart", refused, limit);
}

/// A pool is bound whole.
#[test]
fn a_pool_beyond_a_binding() {
    let noop = noop();
    let compressor = noop.compressor_of_small_bindings();
    let plan = compressor.plan(&paged_shape(), &policy()).expect("a sound plan");
    let mut draft = Draft::new(&noop);
    assert_records(&noop, &plan, &draft.bind(&noop, &plan).expect("60 KiB"));
    draft.pages.num_pages = 11;
    (draft.keys, draft.values) = (noop.storage(3 * POOL), noop.storage(3 * POOL));
    let refused = r#"Argument(PoolExceedsBinding { argument: "keys", pool_bytes: 67584, limit: 65536 })"#;
    assert_error("66 KiB", draft.bind(&noop, &plan), refused);
    // Two pools of 60 KiB whose ranges meet are bound once.
    draft.pages.num_pages = 10;
    (draft.values, draft.values_offset) = (draft.keys.clone(), POOL);
    draft.bind(&noop, &plan).expect("they touch without an alignment in common");
    draft.values_offset = POOL + 4;
    let refused = r#"Argument(PoolExceedsBinding { argument: "keys", pool_bytes: 122884, limit: 65536 })"#;
    draft.keys_offset = 4;
    assert_error("joined", draft.bind(&noop, &plan), refused);
}

#[test]
fn sound_bindings() {
    let noop = noop();
    for order in [Order::Fill, Order::Positional] {
        for page_size in [8, 16, 32, 64] {
            let shape = KvShape { num_layers: 3, ..paged_shape() };
            let mut policy = keynorm::Policy { order, ..policy() };
            policy.skip_layers = vec![1];
            let plan = noop.compressor().plan(&shape, &policy).expect("a sound plan");
            let pages = PageShape { page_size, num_pages: 160 / page_size, has_sentinel: true };
            let buffers: Vec<_> = (0..6).map(|_| noop.storage(POOL)).collect();
            let tables = [noop.storage(256), noop.storage(256)];
            let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("scratch"));
            let view = |layer: usize, is_nhd: bool| {
                let table = PageTable { buffer: &tables[layer / 2], offset_bytes: 4, stride: 9 };
                let (keys, values) = (&buffers[2 * layer], &buffers[2 * layer + 1]);
                if is_nhd {
                    PagedKvView::nhd(&shape, &pages, keys, values, table)
                } else {
                    PagedKvView::hnd(&shape, &pages, keys, values, table)
                }
            };
            let views = [view(0, false), view(1, true), view(2, true)];
            let bound = plan.bind_paged(&noop.device, &pages, &views, &state, &workspace).expect("a sound binding");
            assert_records(&noop, &plan, &bound);
            assert_eq!(bound.freed_pages().expect("freed pages").stride(), 4 + 64 / page_size);
            let future = plan.bind_paged_async(&noop.device, &pages, &views, &state, &workspace);
            assert_records(&noop, &plan, &pollster::block_on(future).expect("a sound binding"));
        }
    }
}

/// Of one pool, bound once, as TVM has it.
#[test]
fn one_pool_for_keys_and_values() {
    let noop = noop();
    let plan = noop.compressor().plan(&paged_shape(), &policy()).expect("a sound plan");
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    let (pool, table) = (noop.storage(2 * POOL), noop.storage(32));
    let table = PageTable { buffer: &table, offset_bytes: 0, stride: 4 };
    let view = PagedKvView::one_pool(plan.shape(), &PAGES, &pool, table);
    assert_eq!(view.values.offset_bytes, 3 * 16 * 128);
    let bound = plan.bind_paged(&noop.device, &PAGES, &[view], &state, &workspace).expect("a sound binding");
    assert_records(&noop, &plan, &bound);
}

#[test]
fn more_sequences_than_a_grid_holds() {
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 100, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let spec = TensorSpec::new(Dtype::F16, 16);
    let shape = KvShape { batch_size: 101, num_kv_heads: 1, capacity: 8, keys: spec, values: spec, num_layers: 1 };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    let pages = PageShape { page_size: 8, num_pages: 101, has_sentinel: false };
    let (keys, values, table) = (noop.storage(101 * 256), noop.storage(101 * 256), noop.storage(404));
    let table = PageTable { buffer: &table, offset_bytes: 0, stride: 1 };
    let view = PagedKvView::hnd(&shape, &pages, &keys, &values, table);
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    let bound = plan.bind_paged(&noop.device, &pages, &[view], &state, &workspace);
    let limit = r#"Limit { limit: "max_compute_workgroups_per_dimension", needed: 101, available: 100 }"#;
    assert_error("sequences", bound, limit);
    // Layers that share a table are looked at together.
    let shape = KvShape { num_layers: 101, batch_size: 1, ..shape };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    let view = PagedKvView::hnd(&shape, &pages, &keys, &values, table);
    let pools: Vec<_> = (0..101).map(|_| (noop.storage(101 * 256), noop.storage(101 * 256))).collect();
    let views: Vec<_> = pools.iter().map(|(k, v)| PagedKvView::hnd(&shape, &pages, k, v, view.table)).collect();
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    assert_error("layers", plan.bind_paged(&noop.device, &pages, &views, &state, &workspace), limit);
}
