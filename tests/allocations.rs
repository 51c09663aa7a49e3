//! `record` allocates nothing of its own and creates no object of the GPU: a record of 32 layers makes as many
//! allocations as a pass of as many commands that a test writes by hand, which are wgpu's, and a record more none. Creating an
//! object allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use keynorm::{
    Bound, Budget, Compressor, Dtype, KvShape, KvView, Options, Order, Policy, Selector, Stages, Switch, TensorSpec,
};

/// Counts the allocations of a thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn device() -> (wgpu::Device, wgpu::Queue) {
    let noop = wgpu::NoopBackendOptions { enable: true, ..Default::default() };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions { noop, ..Default::default() },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("the noop adapter");
    pollster::block_on(adapter.request_device(&Default::default())).expect("a noop device")
}

/// Allocations of recording into a fresh pass.
fn count(device: &wgpu::Device, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> u64 {
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let before = ALLOCATIONS.get();
    record(&mut pass);
    ALLOCATIONS.get() - before
}

/// Allocations of eight more records into a pass that has eight already: wgpu's lists may double once each.
fn count_of_eight_more(device: &wgpu::Device, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> u64 {
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    (0..8).for_each(|_| record(&mut pass));
    let before = ALLOCATIONS.get();
    (0..8).for_each(|_| record(&mut pass));
    ALLOCATIONS.get() - before
}

/// A pipeline with one uniform at a dynamic offset, and its group.
fn dummy(device: &wgpu::Device) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: None,
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: None,
            },
            count: None,
        }],
    });
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 512,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: false,
    });
    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer: &buffer,
        offset: 0,
        size: wgpu::BufferSize::new(16),
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &layout,
        entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
    });
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl("@compute @workgroup_size(1) fn dummy() {}".into()),
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    (pipeline, group)
}

/// What is recorded of 32 layers, and how many dispatches that takes.
struct Recorded {
    name: &'static str,
    policy: Policy,
    subgroups: Switch,
    record: fn(&Bound, &mut wgpu::ComputePass<'_>),
    dispatches: usize,
}

const LAYERS: usize = 32;

fn all() -> [Recorded; 8] {
    let whole = |bound: &Bound, pass: &mut wgpu::ComputePass<'_>| bound.record(pass, 64).expect("a record");
    let every = |policy: Policy| Policy { skip_layers: Vec::new(), ..policy };
    let norm = Policy::new(Budget::keep_ratio(0.5));
    let positional = Policy { order: Order::Positional, ..norm.clone() };
    let bitonic = Policy { selector: Selector::Bitonic, ..norm.clone() };
    let of = |name, policy: &Policy, subgroups, record: fn(&Bound, &mut wgpu::ComputePass<'_>), dispatches| Recorded {
        name,
        policy: policy.clone(),
        subgroups,
        record,
        dispatches,
    };
    let streaming = every(Policy::streaming(32));
    [
        // order, radix_row and finish once, fill for each layer.
        of(
            "a decode step",
            &streaming,
            Switch::Auto,
            |bound, pass| bound.record_stages(pass, 64, Stages::FROM_NORMS).expect("a record"),
            3 + LAYERS,
        ),
        // score for each layer, mark_scored.
        of("norms", &streaming, Switch::Auto, |bound, pass| bound.record_norms(pass, 4).expect("norms"), LAYERS + 1),
        of("appending", &streaming, Switch::Auto, |bound, pass| bound.record_append(pass, 1).expect("a slot"), 1),
        // score for each layer, radix_row or bitonic_row and finish once, fill or a walk for each layer.
        of("stage by stage", &norm, Switch::Auto, whole, 2 * LAYERS + 2),
        of("a walk", &positional, Switch::Auto, whole, 2 * LAYERS + 2),
        of("bitonic", &bitonic, Switch::Auto, whole, 2 * LAYERS + 2),
        // score and move_row for each layer.
        of("rows in parts", &norm, Switch::Off, whole, 2 * LAYERS),
        // sum_keys, add_tiles, score and fill for each layer.
        of("KeyDiff", &every(Policy::keydiff(Budget::keep_ratio(0.5))), Switch::Off, whole, 4 * LAYERS + 2),
    ]
}

#[test]
fn a_record_of_32_layers_allocates_as_a_dummy_pass_does() {
    let (device, queue) = device();
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape =
        KvShape { num_layers: LAYERS as u32, batch_size: 1, num_kv_heads: 2, capacity: 64, keys: spec, values: spec };
    let buffer = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 2 * 64 * 128,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let buffers: Vec<_> = (0..LAYERS).map(|_| (buffer(), buffer())).collect();
    let views: Vec<_> = buffers.iter().map(|(keys, values)| KvView::hnd(&shape, keys, values)).collect();
    let (pipeline, group) = dummy(&device);
    for Recorded { name, policy, subgroups, record, dispatches } in all() {
        let compressor = Compressor::new(&device, Options::with_subgroups(subgroups)).expect("a compressor");
        let plan = compressor.plan(&shape, &policy).expect("a plan");
        let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
        let bound = plan.bind(&device, &views, &state, &workspace).expect("a binding");
        state.set_lengths(&queue, &[64]).expect("a length");
        let by_hand = |pass: &mut wgpu::ComputePass<'_>| {
            for _ in 0..dispatches {
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[256]);
                pass.dispatch_workgroups(1, 1, 1);
            }
        };
        let (ours, by_hand) = (count(&device, |pass| record(&bound, pass)), count(&device, by_hand));
        println!("{name}: {ours} allocations, {by_hand} by hand");
        assert!(by_hand > 0, "wgpu's own are counted");
        assert!(ours <= by_hand, "{name}: {ours} allocations, {by_hand} by hand");
        let more = count_of_eight_more(&device, |pass| record(&bound, pass));
        println!("{name}: {more} allocations of eight more");
        assert!(more < 8, "{name}: {more} allocations of eight more records, one each at least");
    }
}
