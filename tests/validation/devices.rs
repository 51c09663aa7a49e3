//! What a device can lack or refuse, and which variants follow from what it offers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use keynorm::{
    BuildError, Compressor, Dtype, KvShape, Module, Options, Order, Policy, Pool, ReadError, Reduction, Rope, Score,
    Selector, ShaderPatch, Strides, Switch, TensorSpec,
};

use crate::support::{
    Draft, Noop, Tensor, assert_error, assert_message, assert_records, assert_usable, noop, noop_with, policy, request,
    shape,
};

type EditLimits = fn(&mut wgpu::Limits);

pub const LIMITS: &[(&str, EditLimits, &str)] = &[
    (
        "buffers",
        |l| l.max_storage_buffers_per_shader_stage = 7,
        r#"Limit { limit: "max_storage_buffers_per_shader_stage", needed: 8, available: 7 }"#,
    ),
    (
        "invocations",
        |l| l.max_compute_invocations_per_workgroup = 128,
        r#"Limit { limit: "max_compute_invocations_per_workgroup", needed: 256, available: 128 }"#,
    ),
    (
        "size x",
        |l| l.max_compute_workgroup_size_x = 255,
        r#"Limit { limit: "max_compute_workgroup_size_x", needed: 256, available: 255 }"#,
    ),
    (
        "workgroup memory",
        |l| l.max_compute_workgroup_storage_size = 16368,
        r#"Limit { limit: "max_compute_workgroup_storage_size", needed: 16384, available: 16368 }"#,
    ),
    (
        "bindings",
        |l| l.max_bindings_per_bind_group = 8,
        r#"Limit { limit: "max_bindings_per_bind_group", needed: 9, available: 8 }"#,
    ),
    (
        "binding size",
        |l| l.max_storage_buffer_binding_size = (1 << 20) - 4,
        r#"Limit { limit: "max_storage_buffer_binding_size", needed: 1048576, available: 1048572 }"#,
    ),
    (
        "no compute shaders",
        |l| *l = wgpu::Limits::downlevel_webgl2_defaults(),
        r#"Limit { limit: "max_storage_buffers_per_shader_stage", needed: 8, available: 0 }"#,
    ),
];

#[test]
fn devices_below_the_needed_limits() {
    for (name, edit, expected) in LIMITS {
        let mut limits = wgpu::Limits::default();
        edit(&mut limits);
        let noop = noop_with(&limits, wgpu::Features::empty(), 4);
        assert_error(name, Compressor::new(&noop.device, Options::default()), expected);
        assert_error(name, pollster::block_on(Compressor::new_async(&noop.device, Options::default())), expected);
    }
    noop().compressor(); // the default limits serve
}

#[test]
fn grids_and_buffers_below_what_a_plan_needs() {
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 256, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let compressor = noop.compressor();
    match compressor.plan(&KvShape { capacity: 1 << 20, ..shape() }, &policy()) {
        Err(error @ BuildError::Limit { limit: "max_compute_workgroups_per_dimension", needed, available: 256 }) => {
            assert!(needed > 256, "{needed} would fit");
            assert_message("grid", &error);
        }
        other => panic!("{other:?}"),
    }
    assert_usable(&noop, &compressor.plan(&shape(), &policy()).expect("a sound plan"));
    // The heads of a pool are selected from together.
    let pooled = Policy { pool: Some(Pool { min_tokens: 1 }), ..policy() };
    let heads = |num_kv_heads| compressor.plan(&KvShape { num_kv_heads, ..shape() }, &pooled);
    let grid = r#"Limit { limit: "max_compute_workgroups_per_dimension", needed: 257, available: 256 }"#;
    assert_error("pool", heads(254), grid);
    assert_usable(&noop, &heads(253).expect("as many as the grid has, beside three rows of scouts"));

    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let compressor = noop.compressor();
    let row = |capacity| compressor.plan(&KvShape { capacity, ..shape() }, &policy());
    match row(1 << 18) {
        Err(BuildError::Limit { limit: "max_storage_buffer_binding_size", needed, available: 0x10_0000 }) => {
            assert!(needed > 4 << 18, "{needed} bytes of scratch a row");
        }
        other => panic!("{other:?}"),
    }
    assert_usable(&noop, &row(1 << 16).expect("a row of scratch fits"));
    let whole = Policy { skip_layers: vec![0], ..policy() };
    compressor.plan(&KvShape { capacity: 1 << 18, ..shape() }, &whole).expect("no row needs any");

    let limits = wgpu::Limits { max_buffer_size: 1 << 20, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let plan = noop.compressor().plan(&KvShape { capacity: 1 << 18, ..shape() }, &policy()).expect("a sound plan");
    let expected = |needed| format!(r#"Limit {{ limit: "max_buffer_size", needed: {needed}, available: 1048576 }}"#);
    // Six rows of order keys, each with a note that alignment makes 64 words; six of positions.
    for workspace in [plan.create_workspace(), pollster::block_on(plan.create_workspace_async())] {
        assert_error("workspace", workspace, &expected(6 * 4 * ((1 << 18) + 64)));
    }
    for state in [plan.create_state(), pollster::block_on(plan.create_state_async())] {
        assert_error("state", state, &expected((6 * 4) << 18));
    }
    assert_usable(&noop, &noop.compressor().plan(&shape(), &policy()).expect("a sound plan"));
}

/// The state's counters are bound whole.
#[test]
fn more_rows_than_a_binding_of_the_state_holds() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let shape = KvShape { batch_size: 1 << 17, num_kv_heads: 1, capacity: 1, ..shape() };
    let plan = noop.compressor().plan(&shape, &policy()).expect("a sound plan");
    match plan.create_state() {
        Err(error @ BuildError::Limit { limit: "max_storage_buffer_binding_size", needed, available: 1_048_576 }) => {
            assert!(needed > 1 << 20, "{needed} would fit");
            assert_message("state", &error);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn forced_subgroups_on_a_device_without() {
    let noop = noop();
    let forced = Compressor::new(&noop.device, Options::with_subgroups(Switch::On));
    assert_error("subgroups", forced, r#"MissingFeature { feature: "SUBGROUP" }"#);
    noop.compressor();
}

#[test]
fn forced_arrays_on_a_device_without() {
    let noop = noop();
    let mut options = Options::default();
    options.layers_at_once = Switch::On;
    let forced = Compressor::new(&noop.device, options);
    assert_error("arrays", forced, r#"MissingFeature { feature: "BUFFER_BINDING_ARRAY" }"#);
}

/// Rows at a binding's size go whole, larger ones in bands; either way wgpu finds nothing wrong with a record.
#[test]
fn rows_beyond_a_binding() {
    let noop = noop();
    let mut options = Options::default();
    options.max_binding_bytes = Some(1 << 16);
    let is_banded = |shape: &KvShape, edit: &dyn Fn(&mut Draft)| {
        let modules = built(&noop, &options, shape, edit);
        let bands = modules.iter().filter(|m| matches!(m, Module::CompactBands { .. })).count();
        let whole = modules.iter().filter(|m| matches!(m, Module::Compact { .. })).count();
        assert!((bands == 0) != (whole == 0), "{modules:?}");
        bands > 0
    };
    // 512 tokens of 128 bytes are a binding; 6 rows of them are six windows.
    let exact = KvShape { capacity: 512, ..shape() };
    assert!(!is_banded(&exact, &|_| ()));
    assert!(is_banded(&KvShape { capacity: 513, ..exact }, &|_| ()));
    let wide = KvShape { capacity: 256, values: TensorSpec::new(Dtype::F32, 72), ..exact };
    assert!(is_banded(&wide, &|_| ()));
    let nhd = |draft: &mut Draft| draft.layers[0].0.strides = Strides::nhd(3, 512, 64);
    assert!(is_banded(&exact, &nhd));
    // Quantised rows go by words: 68 bytes a token.
    let q8_0 = TensorSpec::new(Dtype::Q8_0, 64);
    let quantised = KvShape { capacity: 960, keys: q8_0, values: q8_0, ..exact };
    assert!(!is_banded(&quantised, &|_| ()));
    assert!(is_banded(&KvShape { capacity: 964, ..quantised }, &|_| ()));
    // Ranges that intersect are bound once, so here it is their union that is too long.
    let joined = |distance: u64| {
        let noop = &noop;
        move |draft: &mut Draft| {
            let strides = Strides { batch: 3 * 512 * 128, head: 512 * 128, token: 128 };
            let keys = Tensor { buffer: noop.storage(7 * 512 * 256), offset_bytes: 0, strides };
            draft.layers[0] = (keys.clone(), Tensor { offset_bytes: 128 + distance * 256, ..keys });
        }
    };
    let half = KvShape { capacity: 200, ..exact };
    assert!(!is_banded(&half, &joined(0)));
    assert!(is_banded(&half, &joined(150)));
}

#[test]
fn caches_beyond_the_default_binding_go_in_windows() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    for (selector, order) in [(Selector::Bitonic, Order::Positional), (Selector::Radix, Order::Fill)] {
        // 48 rows of 512 KiB, and of 32768 tokens beyond what workgroup memory sorts.
        let spec = TensorSpec::new(Dtype::F16, 16);
        let (batch_size, capacity) = (16, 16_384 + 7);
        let shape = KvShape { batch_size, capacity, keys: spec, values: spec, ..shape() };
        let plan = noop.compressor().plan(&shape, &Policy { selector, order, ..policy() }).expect("a sound plan");
        assert_usable(&noop, &plan);
    }
}

/// The modules that a device's plans and bindings build.
fn built(noop: &Noop, options: &Options, shape: &KvShape, edit: impl Fn(&mut Draft)) -> Vec<Module> {
    let sources: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&sources);
    let mut options = options.clone();
    options.shader_patch = Some(ShaderPatch(Arc::new(move |source| {
        seen.lock().expect("a lock").push(source.to_owned());
        source.to_owned()
    })));
    let compressor = Compressor::new(&noop.device, options).expect("a compressor");
    let plan = compressor.plan(shape, &policy()).expect("a sound plan");
    let mut draft = Draft::new(noop, &plan);
    edit(&mut draft);
    let bound = draft.bind(&plan).expect("a sound binding");
    assert_records(noop, &plan, &bound);
    let sources = sources.lock().expect("a lock");
    let all = Module::all();
    let module = |source: &String| *all.iter().find(|m| m.source() == *source).expect("a module of the list");
    sources.iter().map(module).collect()
}

fn key_norm(modules: &[Module]) -> (Dtype, bool, Reduction) {
    let found: Vec<_> = modules
        .iter()
        .filter_map(|m| match *m {
            Module::KeyNorm { dtype, vec4, reduction, .. } => Some((dtype, vec4, reduction)),
            _ => None,
        })
        .collect();
    assert_eq!(found.len(), 1, "one variant of the norm: {modules:?}");
    found[0]
}

#[test]
fn subgroup_size_chooses_the_variant_of_the_norm() {
    // (elements of f16, lanes that share a token)
    for (head_dim, lanes) in [(16, 2), (24, 4), (64, 8), (80, 16), (128, 16), (256, 32), (512, 32)] {
        for subgroup_min_size in [1, 4, 8, 16, 32, 64, 128] {
            let noop = noop_with(&wgpu::Limits::default(), wgpu::Features::SUBGROUP, subgroup_min_size);
            let spec = TensorSpec::new(Dtype::F16, head_dim);
            let shape = KvShape { keys: spec, values: spec, ..shape() };
            let forced = built(&noop, &Options::with_subgroups(Switch::On), &shape, |_| ());
            let fits = lanes <= subgroup_min_size;
            let reduction = if fits { Reduction::Subgroup } else { Reduction::Workgroup };
            let expected = (Dtype::F16, true, reduction);
            assert_eq!(key_norm(&forced), expected, "head_dim {head_dim}, subgroups of {subgroup_min_size}");
            let off = built(&noop, &Options::with_subgroups(Switch::Off), &shape, |_| ());
            assert_eq!(key_norm(&off).2, Reduction::Workgroup, "subgroups are off");
        }
    }
}

/// Of its own accord neither shuffles nor workgroup memory; whatever the host asks for. The noop backend says that it is
/// a CPU, and cannot say anything else.
#[test]
fn a_cpu_norms_a_token_an_invocation() {
    let limits = wgpu::Limits::default();
    for features in [wgpu::Features::empty(), wgpu::Features::SUBGROUP] {
        let noop = noop_with(&limits, features, 32);
        let mut expected = vec![(Switch::Auto, Reduction::Serial), (Switch::Off, Reduction::Workgroup)];
        if features.contains(wgpu::Features::SUBGROUP) {
            expected.push((Switch::On, Reduction::Subgroup));
        }
        for (switch, reduction) in expected {
            let modules = built(&noop, &Options::with_subgroups(switch), &shape(), |_| ());
            assert_eq!(key_norm(&modules), (Dtype::F16, true, reduction), "{switch:?} with {features:?}");
        }
    }
}

#[test]
fn alignment_and_dtype_choose_the_access() {
    let noop = noop();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for offset_bytes in [0, 4, 8, 12, 16, 64] {
            let spec = TensorSpec::new(dtype, 64);
            let shape = KvShape { keys: spec, ..shape() };
            let modules = built(&noop, &Options::default(), &shape, |draft| {
                let keys = &mut draft.layers[0].0;
                *keys = Tensor { buffer: noop.storage(keys.buffer.size() + 64), offset_bytes, ..keys.clone() };
            });
            let vec4 = offset_bytes % 16 == 0;
            assert_eq!(key_norm(&modules), (dtype, vec4, Reduction::Serial), "offset {offset_bytes}");
            let moves = modules.iter().filter_map(|m| match *m {
                Module::Compact { keys_vec4, values_vec4, .. } => Some((keys_vec4, values_vec4)),
                _ => None,
            });
            assert_eq!(moves.collect::<Vec<_>>(), [(vec4, Some(true))], "offset {offset_bytes}");
        }
    }
}

fn large() -> wgpu::Limits {
    wgpu::Limits {
        max_compute_invocations_per_workgroup: 1024,
        max_compute_workgroup_size_x: 1024,
        max_compute_workgroup_storage_size: 49152,
        min_storage_buffer_offset_alignment: 32,
        max_storage_buffer_binding_size: 1 << 30,
        ..Default::default()
    }
}

/// Workgroups as large as a device allows, but with memory for smaller ones.
fn scant() -> wgpu::Limits {
    wgpu::Limits { max_compute_workgroup_storage_size: 16384, ..large() }
}

/// Where workgroup memory is scant, rows that a large workgroup would hold go by tiles, with their scratch.
#[test]
fn workgroups_keep_to_the_memory_of_the_device() {
    let scratch = |limits: wgpu::Limits| {
        let noop = noop_with(&limits, wgpu::Features::empty(), 32);
        let compressor = Compressor::new(&noop.device, Options::default()).expect("a compressor");
        let plan = compressor.plan(&KvShape { capacity: 5000, ..shape() }, &policy()).expect("a sound plan");
        plan.workspace_bytes()
    };
    let small = wgpu::Limits { min_storage_buffer_offset_alignment: 32, ..Default::default() };
    assert_eq!(scratch(scant()), scratch(small));
    assert!(scratch(scant()) > scratch(large()));
}

#[test]
fn every_faked_device_serves() {
    for limits in [wgpu::Limits::default(), large(), scant()] {
        for (features, subgroups) in [
            (wgpu::Features::empty(), Switch::Auto),
            (wgpu::Features::empty(), Switch::Off),
            (wgpu::Features::SUBGROUP, Switch::On),
        ] {
            for selector in [Selector::Auto, Selector::Bitonic, Selector::Radix] {
                for order in [Order::Fill, Order::Positional] {
                    let noop = noop_with(&limits, features, 32);
                    let compressor = Compressor::new(&noop.device, Options::with_subgroups(subgroups));
                    let compressor = compressor.expect("a compressor");
                    for capacity in [1, 10, 5000, 20_000] {
                        let shape = KvShape { capacity, ..shape() };
                        let policy = Policy { selector, order, ..policy() };
                        assert_usable(&noop, &compressor.plan(&shape, &policy).expect("a sound plan"));
                    }
                }
            }
        }
    }
}

/// A shader that the device refuses is an error with its label, each time it is asked for; then the compressor serves on.
#[test]
fn refused_shaders() {
    let noop = noop();
    let broken = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&broken);
    let mut options = Options::default();
    options.shader_patch = Some(ShaderPatch(Arc::new(move |source| {
        if switch.load(Ordering::Relaxed) { format!("{source}\nfn f() {{") } else { source.to_owned() }
    })));
    let compressor = Compressor::new(&noop.device, options).expect("a compressor");
    for attempt in 0..2 {
        match compressor.plan(&shape(), &policy()) {
            Err(error @ BuildError::Device { .. }) => {
                assert!(error.to_string().contains("the device refused keynorm."), "{error}");
                assert!(error.to_string().contains("fn f()"), "the compiler's words are left out: {error}");
            }
            other => panic!("attempt {attempt}: {other:?}"),
        }
    }
    broken.store(false, Ordering::Relaxed);
    assert_usable(&noop, &compressor.plan(&shape(), &policy()).expect("a sound plan"));
}

fn two_of_an_instance() -> [Noop; 2] {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions {
            noop: wgpu::NoopBackendOptions { enable: true, ..Default::default() },
            ..Default::default()
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    [0, 1].map(|_| request(&instance, &wgpu::Limits::default(), wgpu::Features::empty()))
}

/// Buffers of another device of the same instance: wgpu sees them, and the host's error handler does not.
#[test]
fn buffers_of_another_device() {
    let [one, two] = two_of_an_instance();
    let plans = [&one, &two].map(|n| n.compressor().plan(&shape(), &policy()).expect("a sound plan"));
    let draft = Draft { device: two.device.clone(), ..Draft::new(&one, &plans[0]) };
    assert_error("device", draft.bind(&plans[0]), r#"Argument(WrongDevice { argument: "device" })"#);
    type Mix = fn(&mut Draft, Draft);
    let parts: [(&str, Mix); 4] = [
        ("keys", |d, other| d.layers[0].0 = other.layers[0].0.clone()),
        ("values", |d, other| d.layers[0].1 = other.layers[0].1.clone()),
        ("state", |d, other| d.state = other.state),
        ("workspace", |d, other| d.workspace = other.workspace),
    ];
    for (name, mix) in parts {
        let mut draft = Draft::new(&one, &plans[0]);
        mix(&mut draft, Draft::new(&two, &plans[1]));
        match draft.bind(&plans[0]) {
            Err(BuildError::Device { label, message }) => {
                assert!(label.starts_with("keynorm"), "{name}: {label}");
                assert!(message.contains("evice"), "{name}: {message}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_usable(&one, &plans[0]);
    }
}

/// Without a handler of the host's wgpu panics on what nobody captures.
#[test]
fn read_backs_that_cannot_be_are_errors() {
    let [noop, other] = two_of_an_instance();
    let plan = noop.compressor().plan(&shape(), &policy()).expect("a sound plan");
    let bound = Draft::new(&noop, &plan).bind(&plan).expect("a sound binding");
    let compressed = pollster::block_on(bound.compress(&other.device, &other.queue, 10));
    assert_error("another device", compressed, r#"Argument(WrongDevice { argument: "device" })"#);
    let read = pollster::block_on(bound.state().read(&other.device, &other.queue));
    assert!(matches!(read, Err(ReadError::Device(BuildError::Device { .. }))), "another device's buffer: {read:?}");
    for (usage, size, expected) in [
        (wgpu::BufferUsages::STORAGE, 256, r#"Argument(MissingUsage { argument: "buffer", missing: "COPY_SRC" })"#),
        (wgpu::BufferUsages::COPY_SRC, 6, r#"Argument(Misaligned { argument: "buffer", got: 6 })"#),
    ] {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = noop.device.create_buffer(&descriptor);
        let words = pollster::block_on(keynorm::kept::read_words(&noop.device, &noop.queue, &buffer));
        assert_error(expected, words, expected);
    }
}

/// wgpu hands such errors to the host's handler, which panics by default, unless somebody captures them.
#[test]
fn buffers_that_cannot_be_used_are_errors() {
    let noop = noop();
    let plan = noop.compressor().plan(&shape(), &policy()).expect("a sound plan");
    for (name, is_mapped) in [("mapped", true), ("destroyed", false)] {
        let mut draft = Draft::new(&noop, &plan);
        let keys = noop.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: draft.layers[0].0.buffer.size(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: is_mapped,
        });
        draft.layers[0].0.buffer = keys.clone();
        let bound = draft.bind(&plan).expect("a sound binding");
        if !is_mapped {
            keys.destroy();
        }
        let compressed = pollster::block_on(bound.compress(&noop.device, &noop.queue, 10));
        assert!(matches!(compressed, Err(ReadError::Device(BuildError::Device { .. }))), "{name}: {compressed:?}");
    }
}

/// Every dispatch that grows with a cache, where it alone is too long for the device.
#[test]
fn grids_of_every_dispatch() {
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 200, ..Default::default() };
    let noop = noop_with(&limits, wgpu::Features::empty(), 4);
    let compressor = noop.compressor();
    let of = |num_layers, batch_size, capacity, keys: TensorSpec, values: TensorSpec| KvShape {
        num_layers,
        batch_size,
        num_kv_heads: 1,
        capacity,
        keys,
        values,
    };
    let short = TensorSpec::new(Dtype::F16, 16);
    let limit = |needed: u32| {
        format!(r#"Limit {{ limit: "max_compute_workgroups_per_dimension", needed: {needed}, available: 200 }}"#)
    };
    let ratio = Policy { score: Score::ValueKeyRatio, ..policy() };
    let bitonic = Policy { selector: Selector::Bitonic, ..policy() };
    let long = TensorSpec::new(Dtype::F32, 512);
    for (name, shape, policy, needed) in [
        ("append", of(1, 51_201, 8, short, short), policy(), 201),
        ("norms of the values", of(1, 1, 25_729, short, long), ratio, 202),
        ("sort", of(1, 1, 66_000, short, short), bitonic, 256),
    ] {
        assert_error(name, compressor.plan(&shape, &policy), &limit(needed));
    }
    let positional = Policy { order: Order::Positional, ..policy() };
    let rope = Rope::new(16, 10_000.0);
    let plan = compressor.plan(&of(1, 1, 12_801, short, short), &positional).expect("a sound plan");
    let draft = Draft::new(&noop, &plan);
    let rotation = plan.bind_rotation(&noop.device, &[draft.layers[0].0.view()], &draft.state, &rope);
    assert_error("rotation", rotation, &limit(201));
}

#[test]
fn a_lost_device_is_an_error() {
    let noop = noop();
    let compressor = noop.compressor();
    let plan = compressor.plan(&shape(), &policy()).expect("a sound plan");
    let bound = Draft::new(&noop, &plan).bind(&plan).expect("a sound binding");
    // Without a handler of the host wgpu panics on an error that nobody captures; what follows a loss may be one.
    noop.device.on_uncaptured_error(Arc::new(|_| ()));
    noop.device.destroy();
    let read = pollster::block_on(bound.compress(&noop.device, &noop.queue, 10));
    assert!(matches!(read, Err(ReadError::Device(_) | ReadError::Poll(_) | ReadError::Map(_))), "{read:?}");
    assert_message("lost", &read.expect_err("an error"));
    let alive = crate::support::noop();
    assert_usable(&alive, &alive.compressor().plan(&shape(), &policy()).expect("a sound plan"));
}

/// The process runs itself again with little address space, where the allocation of a workspace fails.
#[cfg(target_os = "linux")]
#[test]
fn out_of_memory() {
    const NAME: &str = "devices::out_of_memory";
    const SAID: &str = "the workspace is out of memory";
    let limits = wgpu::Limits { max_buffer_size: u32::MAX.into(), ..Default::default() };
    if std::env::var_os("KEYNORM_LITTLE_MEMORY").is_some() {
        let noop = noop_with(&limits, wgpu::Features::empty(), 4);
        let compressor = noop.compressor();
        let shape = KvShape { batch_size: 125, num_kv_heads: 1, capacity: 1 << 20, ..shape() };
        let plan = compressor.plan(&shape, &policy()).expect("a sound plan");
        match plan.create_workspace() {
            Err(error @ BuildError::OutOfMemory { .. }) => assert_message("memory", &error),
            other => panic!("{other:?}"),
        }
        assert_usable(&noop, &compressor.plan(&crate::support::shape(), &policy()).expect("a sound plan"));
        println!("{SAID}");
        return;
    }
    let child = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 1500000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this program"))
        .args([NAME, "--exact", "--nocapture"])
        .env("KEYNORM_LITTLE_MEMORY", "1")
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains(SAID), "{said}\n{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn everything_is_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Compressor>();
    check::<keynorm::Plan>();
    check::<keynorm::Bound>();
    check::<keynorm::CacheState>();
    check::<keynorm::Workspace>();
    check::<Options>();
    check::<BuildError>();
    check::<ReadError>();
    check::<keynorm::ArgumentError>();
}
