//! `record` allocates nothing of its own and creates no object of the GPU: a record of 32 layers makes as many
//! allocations as a pass of the same commands that a test writes by hand, which are wgpu's. Creating an object allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use keynorm::{Compressor, Dtype, KvShape, KvView, Options, Policy, Stages, TensorSpec};

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

#[test]
fn a_record_of_32_layers_allocates_as_a_dummy_pass_does() {
    const LAYERS: usize = 32;
    let (device, queue) = device();
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape =
        KvShape { num_layers: LAYERS as u32, batch_size: 1, num_kv_heads: 2, capacity: 64, keys: spec, values: spec };
    let policy = Policy { skip_layers: Vec::new(), ..Policy::streaming(32) };
    let plan =
        Compressor::new(&device, Options::default()).expect("a compressor").plan(&shape, &policy).expect("a plan");
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
    let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
    let bound = plan.bind(&device, &views, &state, &workspace).expect("a binding");
    state.set_lengths(&queue, &[64]).expect("a length");
    let (pipeline, group) = dummy(&device);
    // order, radix_row and finish once, fill for each layer.
    let commands = 3 + LAYERS;
    let by_hand = |pass: &mut wgpu::ComputePass<'_>| {
        for _ in 0..commands {
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[256]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    };
    let ours = |pass: &mut wgpu::ComputePass<'_>| {
        bound.record_stages(pass, 64, Stages::FROM_NORMS).expect("a record");
    };
    let (ours, by_hand) = (count(&device, ours), count(&device, by_hand));
    println!("{ours} allocations, {by_hand} by hand");
    assert!(by_hand > 0, "wgpu's own are counted");
    assert!(ours <= by_hand, "{ours} allocations, {by_hand} by hand");
}
