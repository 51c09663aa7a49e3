//! Faked devices, and what every error must look like.

use std::fmt::{Debug, Display};

use keynorm::{
    Bound, Budget, BuildError, CacheState, Compressor, Dtype, KvShape, KvView, Options, Plan, Policy, Strides,
    TensorSpec, TensorView, Workspace,
};

pub struct Noop {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
}

/// A device of the noop backend that reports these limits, features and subgroup sizes.
pub fn noop_with(limits: &wgpu::Limits, features: wgpu::Features, subgroup_min_size: u32) -> Noop {
    let noop = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(limits.clone()),
        features: Some(features),
        subgroup_min_size: Some(subgroup_min_size),
        subgroup_max_size: Some(128),
        ..Default::default()
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions { noop, ..Default::default() },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    request(&instance, limits, features)
}

pub fn request(instance: &wgpu::Instance, limits: &wgpu::Limits, features: wgpu::Features) -> Noop {
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
        .expect("the noop adapter");
    let descriptor =
        wgpu::DeviceDescriptor { required_features: features, required_limits: limits.clone(), ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a noop device");
    Noop { device, queue }
}

/// A device with WebGPU's default limits and no optional feature.
pub fn noop() -> Noop {
    noop_with(&wgpu::Limits::default(), wgpu::Features::empty(), 4)
}

/// 2 sequences of 3 heads, 10 tokens of 64 f16 elements: 7680 bytes a tensor.
pub fn shape() -> KvShape {
    let spec = TensorSpec::new(Dtype::F16, 64);
    KvShape { num_layers: 1, batch_size: 2, num_kv_heads: 3, capacity: 10, keys: spec, values: spec }
}

pub fn policy() -> Policy {
    Policy::new(Budget::keep_ratio(0.5))
}

impl Noop {
    /// With bindings of at most 64 KiB.
    pub fn compressor_of_small_bindings(&self) -> Compressor {
        let mut options = Options::default();
        options.max_binding_bytes = Some(1 << 16);
        Compressor::new(&self.device, options).expect("a compressor")
    }

    pub fn compressor(&self) -> Compressor {
        Compressor::new(&self.device, Options::default()).expect("a compressor")
    }

    pub fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.device.create_buffer(&descriptor)
    }

    pub fn storage(&self, size: u64) -> wgpu::Buffer {
        self.buffer(size, wgpu::BufferUsages::STORAGE)
    }
}

/// One tensor, its buffer owned.
#[derive(Clone)]
pub struct Tensor {
    pub buffer: wgpu::Buffer,
    pub offset_bytes: u64,
    pub strides: Strides,
}

impl Tensor {
    pub fn hnd(buffer: wgpu::Buffer, shape: &KvShape, spec: &TensorSpec) -> Self {
        Self { buffer, offset_bytes: 0, strides: Strides::hnd(shape.num_kv_heads, shape.capacity, spec.row_units()) }
    }

    pub fn view(&self) -> TensorView<'_> {
        TensorView { buffer: &self.buffer, offset_bytes: self.offset_bytes, strides: self.strides }
    }
}

/// What bind is given, sound until a case spoils it.
pub struct Draft {
    pub device: wgpu::Device,
    /// (keys, values) of each layer.
    pub layers: Vec<(Tensor, Tensor)>,
    pub state: CacheState,
    pub workspace: Workspace,
}

impl Draft {
    pub fn new(noop: &Noop, plan: &Plan) -> Self {
        let shape = plan.shape();
        let bytes = |spec: &TensorSpec| {
            u64::from(shape.rows_per_layer()) * u64::from(shape.capacity) * u64::from(spec.row_bytes())
        };
        let tensor = |spec: &TensorSpec| Tensor::hnd(noop.storage(bytes(spec)), shape, spec);
        Self {
            device: noop.device.clone(),
            layers: (0..shape.num_layers).map(|_| (tensor(&shape.keys), tensor(&shape.values))).collect(),
            state: plan.create_state().expect("a state"),
            workspace: plan.create_workspace().expect("a workspace"),
        }
    }

    pub fn bind_with_scores(&self, plan: &Plan, scores: &[TensorView<'_>]) -> Result<Bound, BuildError> {
        plan.bind_with_scores(&self.device, &self.views(), scores, &self.state, &self.workspace)
    }

    pub fn bind(&self, plan: &Plan) -> Result<Bound, BuildError> {
        plan.bind(&self.device, &self.views(), &self.state, &self.workspace)
    }

    fn views(&self) -> Vec<KvView<'_>> {
        self.layers.iter().map(|(k, v)| KvView { keys: k.view(), values: v.view() }).collect()
    }
}

/// A whole compression of a sound draft records and submits without a complaint of wgpu.
pub fn assert_usable(noop: &Noop, plan: &Plan) {
    let draft = Draft::new(noop, plan);
    let bound = draft.bind(plan).expect("a sound binding");
    assert_records(noop, plan, &bound);
}

pub fn assert_records(noop: &Noop, plan: &Plan, bound: &Bound) {
    let capacity = plan.shape().capacity;
    let lengths = vec![capacity; plan.shape().batch_size as usize];
    bound.state().set_lengths(&noop.queue, &lengths).expect("sound lengths");
    assert_clean(noop, |pass| {
        bound.record(pass, capacity).expect("a sound record");
        bound.record_append(pass, 0).expect("a sound append");
    });
}

/// Records and submits a pass; wgpu must find nothing wrong with it.
pub fn assert_clean(noop: &Noop, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
    if let Some(error) = submit(noop, record) {
        panic!("wgpu refuses the pass: {error}");
    }
}

/// Records and submits a pass; what wgpu finds wrong with it.
pub fn submit(noop: &Noop, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Option<wgpu::Error> {
    let scope = noop.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let mut encoder = noop.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    noop.queue.submit([encoder.finish()]);
    pollster::block_on(scope.pop())
}

/// The error is `expected` (as `Debug` prints it, so that NaN equals itself) and reads as an error of this crate does.
#[track_caller]
pub fn assert_error<T>(name: &str, result: Result<T, impl Debug + Display>, expected: &str) {
    let Err(error) = result else { panic!("{name}: accepted, expected {expected}") };
    assert_eq!(format!("{error:?}"), expected, "{name}");
    assert_message(name, &error);
}

/// Lower case, no full stop, names what it is about.
#[track_caller]
pub fn assert_message(name: &str, error: &(impl Debug + Display)) {
    let message = error.to_string();
    let first = message.chars().next().expect("a message");
    assert!(!first.is_uppercase(), "{name}: begins in upper case: {message}");
    assert!(!message.ends_with('.'), "{name}: ends with a full stop: {message}");
    let debug = format!("{error:?}");
    for field in ["argument: ", "first: ", "second: ", "limit: ", "feature: ", "label: "] {
        for quoted in debug.split(field).skip(1).filter_map(|rest| rest.strip_prefix('"')) {
            let named = quoted.split('"').next().expect("a quoted name");
            assert!(message.contains(named), "{name}: does not name {named}: {message}");
        }
    }
}
