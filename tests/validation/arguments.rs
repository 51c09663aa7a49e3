//! What a caller can pass wrongly, class by class.

use keynorm::{
    ArgumentError, Budget, BudgetOverride, BuildError, CacheState, Direction, Dtype, KvShape, Plan, Policy, Pool,
    Schedule, Score, Strides, TensorSpec, Trigger,
};

use crate::support::{
    Draft, Noop, Tensor, assert_clean, assert_error, assert_records, assert_usable, noop, policy, shape, submit,
};

type EditPlan = fn(&mut KvShape, &mut Policy);

fn budget(b: Budget) -> Policy {
    Policy::new(b)
}

const PLANS: &[(&str, EditPlan, &str)] = &[
    ("no layers", |s, _| s.num_layers = 0, r#"ZeroDimension { argument: "num_layers" }"#),
    ("no sequences", |s, _| s.batch_size = 0, r#"ZeroDimension { argument: "batch_size" }"#),
    ("no heads", |s, _| s.num_kv_heads = 0, r#"ZeroDimension { argument: "num_kv_heads" }"#),
    ("no capacity", |s, _| s.capacity = 0, r#"ZeroDimension { argument: "capacity" }"#),
    ("empty keys", |s, _| s.keys.head_dim = 0, r#"ZeroDimension { argument: "keys.head_dim" }"#),
    ("empty values", |s, _| s.values.head_dim = 0, r#"ZeroDimension { argument: "values.head_dim" }"#),
    ("head_dim 8", |s, _| s.keys.head_dim = 8, r#"HeadDim { argument: "keys.head_dim", got: 8 }"#),
    ("head_dim 15", |s, _| s.keys.head_dim = 15, r#"HeadDim { argument: "keys.head_dim", got: 15 }"#),
    ("head_dim 20", |s, _| s.values.head_dim = 20, r#"HeadDim { argument: "values.head_dim", got: 20 }"#),
    ("head_dim 66", |s, _| s.keys.head_dim = 66, r#"HeadDim { argument: "keys.head_dim", got: 66 }"#),
    ("head_dim 520", |s, _| s.values.head_dim = 520, r#"HeadDim { argument: "values.head_dim", got: 520 }"#),
    ("head_dim 576", |s, _| s.keys.head_dim = 576, r#"HeadDim { argument: "keys.head_dim", got: 576 }"#),
    ("head_dim max", |s, _| s.keys.head_dim = u32::MAX, r#"HeadDim { argument: "keys.head_dim", got: 4294967295 }"#),
    (
        "capacity",
        |s, _| s.capacity = (1 << 20) + 1,
        r#"TooLarge { argument: "capacity", got: 1048577, limit: 1048576 }"#,
    ),
    (
        "rows overflow u32",
        |s, _| (s.batch_size, s.num_kv_heads) = (1 << 16, 1 << 16),
        r#"TooLarge { argument: "num_layers * batch_size * num_kv_heads", got: 4294967296, limit: 16776960 }"#,
    ),
    (
        "rows overflow u64",
        |s, _| (s.num_layers, s.batch_size, s.num_kv_heads) = (u32::MAX, u32::MAX, u32::MAX),
        r#"TooLarge { argument: "num_layers * batch_size * num_kv_heads", got: 18446744073709551615, limit: 16776960 }"#,
    ),
    (
        "slots",
        |s, _| (s.batch_size, s.num_kv_heads, s.capacity) = (1 << 9, 1 << 3, 1 << 20),
        r#"TooLarge { argument: "num_layers * batch_size * num_kv_heads * capacity", got: 4294967296, limit: 4294967295 }"#,
    ),
    (
        "part of a block",
        |s, _| s.keys = TensorSpec::new(Dtype::Q8_0, 80),
        r#"PartialBlock { argument: "keys.head_dim", got: 80, block_len: 32 }"#,
    ),
    (
        "part of a chunk",
        |s, _| s.values = TensorSpec::new(Dtype::F8E5M2, 72),
        r#"PartialBlock { argument: "values.head_dim", got: 72, block_len: 16 }"#,
    ),
    (
        "q8_0 rows that share a word",
        |s, _| s.values = TensorSpec::new(Dtype::Q8_0, 96),
        r#"RowBytes { argument: "values.head_dim", row_bytes: 102, padded: 128 }"#,
    ),
    (
        "q4_0 rows that share a word",
        |s, _| s.keys = TensorSpec::new(Dtype::Q4_0, 32),
        r#"RowBytes { argument: "keys.head_dim", row_bytes: 18, padded: 64 }"#,
    ),
    (
        "keydiff of quantised keys",
        |s, p| (s.keys, p.score) = (TensorSpec::new(Dtype::Q8_0, 64), Score::KeyDiff),
        r#"Unsupported { what: "quantised keys with Score::KeyDiff or Score::Centroid" }"#,
    ),
    (
        "layers that end before they begin",
        |s, p| {
            (s.num_layers, p.budgets) = (
                8,
                vec![BudgetOverride { layers: std::ops::Range { start: 6, end: 4 }, heads: 0..1, budget: p.budget }],
            );
        },
        r#"TooLarge { argument: "budgets.layers", got: 6, limit: 4 }"#,
    ),
    ("ratio NaN", |_, p| *p = Policy::paper(f64::NAN), "KeepRatio { got: NaN }"),
    ("ratio below 0", |_, p| *p = Policy::paper(-0.1), "KeepRatio { got: -0.1 }"),
    (
        "ratio just below 0",
        |_, p| *p = Policy::kvpress(-f64::MIN_POSITIVE),
        "KeepRatio { got: -2.2250738585072014e-308 }",
    ),
    ("ratio above 1", |_, p| *p = Policy::safe(1.5), "KeepRatio { got: 1.5 }"),
    ("ratio just above 1", |_, p| *p = Policy::kvpress(1.0000000000000002), "KeepRatio { got: 1.0000000000000002 }"),
    ("ratio +inf", |_, p| *p = Policy::kvpress(f64::INFINITY), "KeepRatio { got: inf }"),
    ("ratio -inf", |_, p| *p = Policy::kvpress(f64::NEG_INFINITY), "KeepRatio { got: -inf }"),
    ("0 tokens", |_, p| *p = budget(Budget::KeepTokens(0)), r#"ZeroDimension { argument: "keep_tokens" }"#),
    (
        "tokens below sinks",
        |_, p| *p = Policy { sinks: 4, ..budget(Budget::KeepTokens(3)) },
        "KeepTokensBelowProtected { keep_tokens: 3, protected: 4 }",
    ),
    (
        "tokens below sinks + recent",
        |_, p| *p = Policy { sinks: 4, recent: 64, ..budget(Budget::KeepTokens(67)) },
        "KeepTokensBelowProtected { keep_tokens: 67, protected: 68 }",
    ),
    (
        "protection overflows u32",
        |_, p| *p = Policy { sinks: u32::MAX, recent: u32::MAX, ..budget(Budget::KeepTokens(1)) },
        "KeepTokensBelowProtected { keep_tokens: 1, protected: 8589934590 }",
    ),
    (
        "cached norms of another score",
        |_, p| (p.score, p.cached_norms) = (Score::Centroid, true),
        r#"Unsupported { what: "cached_norms with a score other than KeyNorm and KeyDiff" }"#,
    ),
    (
        "pool of another score",
        |_, p| (p.score, p.pool) = (Score::Centroid, Some(Pool { min_tokens: 1 })),
        r#"Unsupported { what: "a pool with a score other than KeyNorm" }"#,
    ),
    (
        "norm limit of another score",
        |_, p| *p = Policy::keydiff(Budget::MaxNorm(1.0)),
        r#"Unsupported { what: "budget MaxNorm with a score other than KeyNorm" }"#,
    ),
    ("share NaN", |_, p| p.recent_share = Some(f64::NAN), "RecentShare { got: NaN }"),
    ("share above 1", |_, p| p.recent_share = Some(1.25), "RecentShare { got: 1.25 }"),
    ("ratio of keydiff", |_, p| *p = Policy::keydiff(Budget::keep_ratio(1.5)), "KeepRatio { got: 1.5 }"),
    ("no ratio of keydiff", |_, p| *p = Policy::keydiff(Budget::keep_ratio(f64::NAN)), "KeepRatio { got: NaN }"),
    (
        "pool of another score with cached norms",
        |_, p| (p.score, p.pool, p.cached_norms) = (Score::KeyDiff, Some(Pool { min_tokens: 1 }), true),
        r#"Unsupported { what: "a pool with a score other than KeyNorm" }"#,
    ),
    (
        "tokens of keydiff",
        |_, p| *p = Policy::keydiff(Budget::KeepTokens(0)),
        r#"ZeroDimension { argument: "keep_tokens" }"#,
    ),
    (
        "skipped layer",
        |_, p| p.skip_layers = vec![0, 1],
        r#"LayerOutOfRange { argument: "skip_layers", layer: 1, num_layers: 1 }"#,
    ),
    (
        "skipped layer max",
        |_, p| p.skip_layers = vec![u32::MAX],
        r#"LayerOutOfRange { argument: "skip_layers", layer: 4294967295, num_layers: 1 }"#,
    ),
];

#[test]
fn plans() {
    let noop = noop();
    let compressor = noop.compressor();
    for (name, edit, expected) in PLANS {
        let (mut shape, mut policy) = (shape(), policy());
        edit(&mut shape, &mut policy);
        assert_error(name, compressor.plan(&shape, &policy), &format!("Argument({expected})"));
        let result = pollster::block_on(compressor.plan_async(&shape, &policy));
        assert_error(name, result, &format!("Argument({expected})"));
    }
    assert_usable(&noop, &compressor.plan(&shape(), &policy()).expect("a sound plan"));
}

/// The limits themselves are accepted: the refusals above are not off by one.
#[test]
fn plans_at_the_limits() {
    let edits: [(&str, EditPlan); 11] = [
        ("head_dim 16 and 512", |s, _| (s.keys.head_dim, s.values.head_dim) = (16, 512)),
        ("head_dim 24", |s, _| s.keys.head_dim = 24),
        ("f32", |s, _| s.keys.dtype = Dtype::F32),
        ("ratio 0", |_, p| *p = Policy::kvpress(0.0)),
        ("ratio 1", |_, p| *p = Policy::kvpress(1.0)),
        ("ratio -0", |_, p| *p = Policy::kvpress(-0.0)),
        ("1 token", |_, p| *p = budget(Budget::KeepTokens(1))),
        ("tokens = protected", |_, p| *p = Policy { sinks: 4, recent: 5, ..budget(Budget::KeepTokens(9)) }),
        ("all protected", |_, p| *p = Policy { sinks: u32::MAX, recent: u32::MAX, ..Policy::kvpress(0.5) }),
        ("all skipped", |_, p| p.skip_layers = vec![0, 0]),
        ("random", |_, p| p.direction = Direction::Random { seed: u64::MAX }),
    ];
    let noop = noop();
    let compressor = noop.compressor();
    for (name, edit) in edits {
        let (mut shape, mut policy) = (shape(), policy());
        edit(&mut shape, &mut policy);
        let plan = compressor.plan(&shape, &policy).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_usable(&noop, &plan);
    }
    for (capacity, rows) in [(1 << 20, 1), (1, 16_776_960)] {
        let shape = KvShape { batch_size: rows, num_kv_heads: 1, capacity, ..shape() };
        compressor.plan(&shape, &policy()).unwrap_or_else(|e| panic!("{rows} rows of {capacity}: {e}"));
    }
}

/// Buffers of 7680 bytes with two layers: 128 bytes a row, 1280 a head, 3840 a sequence.
type EditDraft = fn(&Noop, &mut Draft);

fn keys(d: &mut Draft) -> &mut Tensor {
    &mut d.layers[0].0
}

fn values(d: &mut Draft) -> &mut Tensor {
    &mut d.layers[0].1
}

const BINDS: &[(&str, EditDraft, &str)] = &[
    (
        "K short",
        |n, d| keys(d).buffer = n.storage(7676),
        r#"OutsideBuffer { argument: "keys", end: 7680, buffer_bytes: 7676 }"#,
    ),
    (
        "V short",
        |n, d| values(d).buffer = n.storage(4),
        r#"OutsideBuffer { argument: "values", end: 7680, buffer_bytes: 4 }"#,
    ),
    (
        "K offset",
        |_, d| keys(d).offset_bytes = 4,
        r#"OutsideBuffer { argument: "keys", end: 7684, buffer_bytes: 7680 }"#,
    ),
    (
        "K far offset",
        |_, d| keys(d).offset_bytes = 1 << 40,
        r#"OutsideBuffer { argument: "keys", end: 1099511635456, buffer_bytes: 7680 }"#,
    ),
    (
        "V stride",
        |_, d| values(d).strides.batch += 2,
        r#"OutsideBuffer { argument: "values", end: 7684, buffer_bytes: 7680 }"#,
    ),
    ("offset 1", |_, d| keys(d).offset_bytes = 1, r#"Misaligned { argument: "keys.offset_bytes", got: 1 }"#),
    ("offset 2", |_, d| keys(d).offset_bytes = 2, r#"Misaligned { argument: "keys.offset_bytes", got: 2 }"#),
    ("offset 6", |_, d| values(d).offset_bytes = 6, r#"Misaligned { argument: "values.offset_bytes", got: 6 }"#),
    ("K token stride", |_, d| keys(d).strides.token = 65, r#"Misaligned { argument: "keys.strides", got: 130 }"#),
    ("V batch stride", |_, d| values(d).strides.batch += 1, r#"Misaligned { argument: "values.strides", got: 3842 }"#),
    (
        "K usage",
        |n, d| keys(d).buffer = n.buffer(7680, wgpu::BufferUsages::COPY_DST),
        r#"MissingUsage { argument: "keys", missing: "STORAGE" }"#,
    ),
    (
        "V usage",
        |n, d| values(d).buffer = n.buffer(7680, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_SRC),
        r#"MissingUsage { argument: "values", missing: "STORAGE" }"#,
    ),
    ("K = V", |_, d| *values(d) = keys(d).clone(), r#"Overlap { first: "keys", second: "values" }"#),
    (
        "V begins in the last word of K",
        |n, d| {
            keys(d).buffer = n.storage(1 << 15);
            *values(d) = Tensor { offset_bytes: 7676, ..keys(d).clone() };
        },
        r#"Overlap { first: "keys", second: "values" }"#,
    ),
    (
        "V interleaves with K but for one word",
        |n, d| {
            let strides = Strides { batch: 3 * 1280, head: 1280, token: 128 };
            *keys(d) = Tensor { buffer: n.storage(1 << 15), offset_bytes: 0, strides };
            *values(d) = Tensor { offset_bytes: 124, ..keys(d).clone() };
        },
        r#"Overlap { first: "keys", second: "values" }"#,
    ),
    (
        "V of other strides crosses K",
        |n, d| {
            keys(d).buffer = n.storage(1 << 16);
            let strides = Strides { batch: 9000, head: 3000, token: 300 };
            *values(d) = Tensor { buffer: keys(d).buffer.clone(), offset_bytes: 128, strides };
        },
        r#"Overlap { first: "keys", second: "values" }"#,
    ),
    (
        "K in the state's lengths",
        |_, d| keys(d).buffer = d.state.meta().clone(),
        r#"OutsideBuffer { argument: "keys", end: 7680, buffer_bytes: 512 }"#,
    ),
    ("layers share K", |_, d| d.layers[1].0 = keys(d).clone(), r#"Overlap { first: "keys", second: "keys" }"#),
    (
        "V of layer 0 is K of layer 1",
        |_, d| d.layers[1].0 = values(d).clone(),
        r#"Overlap { first: "values", second: "keys" }"#,
    ),
    (
        "tokens overlap",
        |_, d| keys(d).strides.token = 62,
        r#"OverlappingRows { argument: "keys", dimension: "token", got: 62, expected: 64 }"#,
    ),
    (
        "zero token stride",
        |_, d| values(d).strides.token = 0,
        r#"OverlappingRows { argument: "values", dimension: "token", got: 0, expected: 64 }"#,
    ),
    (
        "zero head stride",
        |_, d| keys(d).strides.head = 0,
        r#"OverlappingRows { argument: "keys", dimension: "head", got: 0, expected: 64 }"#,
    ),
    (
        "heads overlap",
        |_, d| keys(d).strides.head = 638,
        r#"OverlappingRows { argument: "keys", dimension: "head", got: 638, expected: 640 }"#,
    ),
    (
        "sequences overlap",
        |_, d| values(d).strides.batch = 1918,
        r#"OverlappingRows { argument: "values", dimension: "batch", got: 1918, expected: 1920 }"#,
    ),
    (
        "dimensions transposed",
        |_, d| keys(d).strides = Strides { batch: 1920, head: 64, token: 64 },
        r#"OverlappingRows { argument: "keys", dimension: "head", got: 64, expected: 640 }"#,
    ),
    ("stride u64", |_, d| keys(d).strides.batch = u64::MAX, r#"AddressOverflow { argument: "keys" }"#),
    ("extent u64", |_, d| values(d).strides.token = 1 << 61, r#"AddressOverflow { argument: "values" }"#),
    ("end past 2^62", |_, d| values(d).strides.batch = 1 << 62, r#"AddressOverflow { argument: "values" }"#),
    ("offset u64", |_, d| keys(d).offset_bytes = u64::MAX - 3, r#"AddressOverflow { argument: "keys" }"#),
    ("too few views", |_, d| d.layers.truncate(1), r#"WrongCount { argument: "views", got: 1, expected: 2 }"#),
    ("no views", |_, d| d.layers.clear(), r#"WrongCount { argument: "views", got: 0, expected: 2 }"#),
    (
        "too many views",
        |_, d| d.layers.push(d.layers[0].clone()),
        r#"WrongCount { argument: "views", got: 3, expected: 2 }"#,
    ),
    (
        "state of another shape",
        |n, d| d.state = other_plan(n).create_state().expect("a state"),
        r#"WrongPlan { argument: "state" }"#,
    ),
    (
        "workspace of a row shorter, in strides that are the same",
        |n, d| {
            let plan = n.compressor().plan(&KvShape { capacity: 9, num_layers: 2, ..shape() }, &policy());
            d.workspace = plan.expect("a sound plan").create_workspace().expect("a workspace");
        },
        r#"WrongPlan { argument: "workspace" }"#,
    ),
    (
        "workspace of another shape",
        |n, d| d.workspace = other_plan(n).create_workspace().expect("a workspace"),
        r#"WrongPlan { argument: "workspace" }"#,
    ),
];

fn other_plan(noop: &Noop) -> keynorm::Plan {
    noop.compressor().plan(&KvShape { capacity: 100, ..shape() }, &policy()).expect("a sound plan")
}

#[test]
fn bindings() {
    let noop = noop();
    let shape = KvShape { num_layers: 2, ..shape() };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    for (name, edit, expected) in BINDS {
        let mut draft = Draft::new(&noop, &plan);
        edit(&noop, &mut draft);
        assert_error(name, draft.bind(&plan), &format!("Argument({expected})"));
        assert_usable(&noop, &plan);
    }
}

/// The keys lie in memory of the crate itself.
#[test]
fn bindings_over_the_crates_own_buffers() {
    let noop = noop();
    let small = TensorSpec::new(Dtype::F16, 16);
    let shape = KvShape { batch_size: 1, num_kv_heads: 1, capacity: 2, keys: small, values: small, ..shape() };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    type Own = fn(&Draft) -> wgpu::Buffer;
    let own: [(&str, Own); 4] = [
        ("state.status", |d| d.state.status().clone()),
        ("state.meta", |d| d.state.meta().clone()),
        ("state.positions", |d| d.state.positions().clone()),
        ("workspace.order_keys", |d| d.workspace.order_keys().clone()),
    ];
    for (name, buffer) in own {
        for part in ["keys", "values"] {
            let mut draft = Draft::new(&noop, &plan);
            let tensor = if part == "keys" { &draft.layers[0].0 } else { &draft.layers[0].1 };
            let spoilt = Tensor { buffer: buffer(&draft), ..tensor.clone() };
            *(if part == "keys" { keys(&mut draft) } else { values(&mut draft) }) = spoilt;
            let expected = format!(r#"Argument(Overlap {{ first: "{name}", second: "{part}" }})"#);
            assert_error(name, draft.bind(&plan), &expected);
        }
    }
    assert_usable(&noop, &plan);
}

/// Neighbours of the refusals above that must bind.
#[test]
fn sound_bindings() {
    let edits: [(&str, EditDraft); 6] = [
        ("V right after K", |n, d| {
            keys(d).buffer = n.storage(1 << 15);
            *values(d) = Tensor { offset_bytes: 7680, ..keys(d).clone() };
        }),
        ("K and V interleaved", |n, d| {
            let strides = Strides { batch: 3 * 1280, head: 1280, token: 128 };
            *keys(d) = Tensor { buffer: n.storage(1 << 15), offset_bytes: 4, strides };
            *values(d) = Tensor { offset_bytes: 132, ..keys(d).clone() };
        }),
        ("layers in one buffer", |n, d| {
            let buffer = n.storage(4 * 7680);
            for layer in 0..2u64 {
                let place = |ix: u64| Tensor { offset_bytes: ix * 7680, ..d.layers[0].0.clone() };
                let pair = [place(2 * layer), place(2 * layer + 1)].map(|t| Tensor { buffer: buffer.clone(), ..t });
                let [k, v] = pair;
                d.layers[layer as usize] = (k, v);
            }
        }),
        ("[batch, token, head, dim]", |_, d| keys(d).strides = Strides::nhd(3, 10, 64)),
        ("odd words", |n, d| *keys(d) = Tensor { buffer: n.storage(7684), offset_bytes: 4, ..keys(d).clone() }),
        ("heads outermost", |_, d| values(d).strides = Strides { head: 1280, batch: 640, token: 64 }),
    ];
    let noop = noop();
    let shape = KvShape { num_layers: 2, ..shape() };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    for (name, edit) in edits {
        let mut draft = Draft::new(&noop, &plan);
        edit(&noop, &mut draft);
        let bound = draft.bind(&plan).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_records(&noop, &plan, &bound);
    }
}

#[test]
fn views_of_skipped_layers_are_not_looked_at() {
    let noop = noop();
    let shape = KvShape { num_layers: 2, ..shape() };
    let policy = Policy { skip_layers: vec![0], ..policy() };
    let plan = noop.compressor().plan(&shape, &policy).expect("a sound plan");
    let mut draft = Draft::new(&noop, &plan);
    keys(&mut draft).offset_bytes = 3;
    draft.bind(&plan).expect("layer 0 is skipped");
    draft.layers.reverse();
    assert_error("layer 1", draft.bind(&plan), r#"Argument(Misaligned { argument: "keys.offset_bytes", got: 3 })"#);
}

/// What a state that grows is copied into, and what a schedule goes on with.
#[test]
fn states_and_plans_of_other_capacities() {
    let noop = noop();
    let plan = |capacity, policy: &Policy| {
        noop.compressor().plan(&KvShape { capacity, ..shape() }, policy).expect("a sound plan")
    };
    let state = |plan: &Plan| plan.create_state().expect("a state");
    let (small, large) = (plan(10, &policy()), plan(64, &policy()));
    let cached = plan(64, &Policy { cached_norms: true, ..policy() });
    let heads = noop.compressor().plan(&KvShape { num_kv_heads: 4, ..shape() }, &policy()).expect("a sound plan");
    let from = state(&small);
    let copy = |from: &CacheState, to: &CacheState| {
        let mut encoder = noop.device.create_command_encoder(&Default::default());
        from.copy_into(&mut encoder, to).map(|()| drop(encoder.finish()))
    };
    copy(&from, &state(&large)).expect("a larger state");
    copy(&from, &state(&small)).expect("another of the same plan");
    assert_error("itself", copy(&from, &from.clone()), r#"Overlap { first: "state", second: "other" }"#);
    let less = r#"TooLarge { argument: "capacity", got: 64, limit: 10 }"#;
    assert_error("less", copy(&state(&large), &from), less);
    assert_error("norms", copy(&from, &state(&cached)), r#"WrongPlan { argument: "other" }"#);
    assert_error("heads", copy(&from, &state(&heads)), r#"WrongPlan { argument: "other" }"#);

    let mut schedule = Schedule::new(&small, Trigger::AtCap(10), &[9, 3]).expect("a schedule");
    let beyond = [2, 30];
    assert!(schedule.clone().append(&beyond).is_err(), "no room");
    assert_error("policy", schedule.set_plan(&cached), r#"WrongPlan { argument: "plan" }"#);
    assert_error("heads", schedule.set_plan(&heads), r#"WrongPlan { argument: "plan" }"#);
    schedule.set_plan(&large).expect("a larger plan");
    assert_error("less", schedule.set_plan(&small), less);
    let due = schedule.append(&beyond).expect("room").expect("a cap that is passed");
    assert_eq!((due.max_len, due.max_new), (33, 33));
}

#[test]
fn cache_state() {
    let noop = noop();
    let plan = noop.compressor().plan(&shape(), &policy()).expect("a sound plan");
    let state = plan.create_state().expect("a state");
    let q = &noop.queue;
    let cases: [(&str, Result<(), ArgumentError>, &str); 14] = [
        ("no lengths", state.set_lengths(q, &[]), r#"WrongCount { argument: "lengths", got: 0, expected: 2 }"#),
        ("one length", state.set_lengths(q, &[1]), r#"WrongCount { argument: "lengths", got: 1, expected: 2 }"#),
        ("a length a row", state.set_lengths(q, &[1; 6]), r#"WrongCount { argument: "lengths", got: 6, expected: 2 }"#),
        (
            "length",
            state.set_lengths(q, &[10, 11]),
            r#"LengthOverCapacity { argument: "lengths", index: 1, got: 11, capacity: 10 }"#,
        ),
        (
            "length max",
            state.set_lengths(q, &[u32::MAX, 0]),
            r#"LengthOverCapacity { argument: "lengths", index: 0, got: 4294967295, capacity: 10 }"#,
        ),
        ("no mask", state.set_active(q, &[]), r#"WrongCount { argument: "active", got: 0, expected: 2 }"#),
        ("long mask", state.set_active(q, &[true; 3]), r#"WrongCount { argument: "active", got: 3, expected: 2 }"#),
        ("sequence", state.reset_sequence(q, 2), r#"IndexOutOfRange { argument: "sequence", got: 2, limit: 2 }"#),
        (
            "sequence max",
            state.reset_sequence(q, u32::MAX),
            r#"IndexOutOfRange { argument: "sequence", got: 4294967295, limit: 2 }"#,
        ),
        ("counts", state.set_append_counts(q, 0, &[1]), r#"WrongCount { argument: "counts", got: 1, expected: 2 }"#),
        (
            "tokens",
            state.set_append_counts(q, 0, &[10, 11]),
            r#"LengthOverCapacity { argument: "counts", index: 1, got: 11, capacity: 10 }"#,
        ),
        ("slot", state.set_append_counts(q, 8, &[1, 1]), r#"IndexOutOfRange { argument: "slot", got: 8, limit: 8 }"#),
        (
            "slot max",
            state.set_append_counts(q, u32::MAX, &[1, 1]),
            r#"IndexOutOfRange { argument: "slot", got: 4294967295, limit: 8 }"#,
        ),
        (
            "counts before slot",
            state.set_append_counts(q, 8, &[1; 3]),
            r#"WrongCount { argument: "counts", got: 3, expected: 2 }"#,
        ),
    ];
    for (name, result, expected) in cases {
        assert_error(name, result, expected);
    }
    state.set_lengths(q, &[10, 0]).expect("sound lengths");
    state.set_active(q, &[true, false]).expect("a sound mask");
    state.set_append_counts(q, 7, &[1, 0]).expect("sound counts");
    state.reset_sequence(q, 1).expect("a sound sequence");
    let kept = pollster::block_on(state.read(&noop.device, q)).expect("a read-back");
    assert_eq!(kept.layers[0].num_seen, [10, 0], "refused lengths were not written");
    let lens: Vec<usize> = kept.layers[0].positions.iter().map(Vec::len).collect();
    assert_eq!(lens, [10, 10, 10, 0, 0, 0], "lengths after the reset");
}

/// An error leaves the pass as it was: no pipeline is set, and a record after it is sound.
#[test]
fn records() {
    let noop = noop();
    let plan = noop.compressor().plan(&shape(), &policy()).expect("a sound plan");
    let bound = Draft::new(&noop, &plan).bind(&plan).expect("a sound binding");
    let too_long = r#"TooLarge { argument: "max_len", got: 11, limit: 10 }"#;
    let no_slot = r#"IndexOutOfRange { argument: "slot", got: 8, limit: 8 }"#;
    let refused = |pass: &mut wgpu::ComputePass<'_>| {
        assert_error("max_len", bound.record(pass, 11), too_long);
        assert_error("max_len", bound.record_stages(pass, 11, keynorm::Stages::SCORE), too_long);
        assert_error("slot", bound.record_append(pass, 8), no_slot);
        assert_error("slot", bound.record_truncate(pass, 8), no_slot);
    };
    let dispatched = submit(&noop, |pass| {
        refused(pass);
        pass.dispatch_workgroups(1, 1, 1);
    });
    let message = dispatched.expect("a dispatch without a pipeline is refused").to_string();
    assert!(message.contains("ipeline"), "refused for another reason: {message}");
    assert_clean(&noop, |pass| {
        refused(pass);
        bound.record(pass, 10).expect("a sound record");
        refused(pass);
        bound.record_append(pass, 7).expect("a sound append");
    });
    let read = pollster::block_on(bound.compress(&noop.device, &noop.queue, 11));
    assert_error("compress", read, &format!("Argument({too_long})"));
    pollster::block_on(bound.compress(&noop.device, &noop.queue, 10)).expect("a sound compression");
}

#[test]
fn no_length_and_no_layer_record_nothing() {
    let noop = noop();
    for (skip_layers, max_len) in [(vec![], 0), (vec![0], 10)] {
        let policy = Policy { skip_layers, ..policy() };
        let plan = noop.compressor().plan(&shape(), &policy).expect("a sound plan");
        let bound = Draft::new(&noop, &plan).bind(&plan).expect("a sound binding");
        let dispatched = submit(&noop, |pass| {
            bound.record(pass, max_len).expect("a record of nothing");
            pass.dispatch_workgroups(1, 1, 1);
        });
        dispatched.expect("no pipeline was set");
    }
}

#[test]
fn there_are_at_least_sixty_cases() {
    let num_cases = PLANS.len() + BINDS.len() + crate::devices::LIMITS.len();
    assert!(num_cases >= 60, "{num_cases} cases");
}

/// Compiles only where bind's errors can be told apart from the others.
#[test]
fn argument_errors_convert() {
    let error: BuildError = ArgumentError::ZeroDimension { argument: "capacity" }.into();
    assert!(matches!(error, BuildError::Argument(ArgumentError::ZeroDimension { argument: "capacity" })), "{error:?}");
}
