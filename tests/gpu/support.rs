//! One runner for all cases: builds a cache in poisoned memory, compresses it on the GPU and by the reference, and
//! compares every byte of every buffer.

use std::sync::OnceLock;

use keynorm::reference::{self, CacheRow};
use keynorm::{
    Bound, CacheState, Compressor, Dtype, KvShape, KvView, Options, Plan, Policy, Status, Strides, TensorSpec,
    TensorView, Workspace,
};

/// A device and its queue, shared by the tests of the process.
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
}

pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let options = wgpu::RequestAdapterOptions::default();
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .expect("no adapter: run the tests through scripts/with-adapter");
        let descriptor = wgpu::DeviceDescriptor {
            required_features: keynorm::optional_features(&adapter),
            required_limits: keynorm::recommended_limits(&adapter),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let info = adapter.get_info();
        println!(
            "adapter: {} ({}), subgroups {}..{}",
            info.name, info.driver_info, info.subgroup_min_size, info.subgroup_max_size
        );
        Gpu { device, queue, info }
    })
}

/// Where the tensors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Hnd,
    Nhd,
    /// HND at an offset of some words into a larger buffer, rows padded apart.
    Offset {
        words: u64,
        pad_elements: u64,
    },
    /// K and V of a token side by side in one buffer: [batch, head, token, 2, dim].
    Interleaved {
        words: u64,
    },
    /// K, then V, touching, in one buffer.
    Touching,
}

/// What the keys hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Random,
    /// Few distinct norms.
    Ties,
    AllEqual,
    /// NaN, infinities, zeros, subnormals and overflow among random keys.
    Special,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub shape: KvShape,
    pub policy: Policy,
    pub layout: Layout,
    pub data: Data,
    pub lengths: Vec<u32>,
    /// Tokens appended before a second compression.
    pub appended: Vec<u32>,
    pub options: Options,
    pub seed: u64,
}

impl Case {
    pub fn new(shape: KvShape, policy: Policy) -> Self {
        Self {
            shape,
            policy,
            layout: Layout::Hnd,
            data: Data::Random,
            lengths: vec![shape.capacity; shape.batch_size as usize],
            appended: Vec::new(),
            options: Options::default(),
            seed: 1,
        }
    }
}

pub fn shape(batch_size: u32, num_kv_heads: u32, capacity: u32, head_dim: u32, dtype: Dtype) -> KvShape {
    let spec = TensorSpec::new(dtype, head_dim);
    KvShape { num_layers: 1, batch_size, num_kv_heads, capacity, keys: spec, values: spec }
}

/// A small generator, so that a case is its seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// About normal: the sum of four uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.below(1 << 16) as f32 / 65536.0 - 0.5).sum::<f32>() * 1.7
    }
}

fn encode(dtype: Dtype, value: f32, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => out.extend(value.to_le_bytes()),
        Dtype::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
        Dtype::Bf16 => out.extend(half::bf16::from_f32(value).to_le_bytes()),
    }
}

/// One token's row.
pub fn make_row(spec: &TensorSpec, data: Data, rng: &mut Rng) -> Vec<u8> {
    let mut row = Vec::new();
    let scale = 0.2 + rng.below(1000) as f32 / 500.0;
    let special = if data == Data::Special { rng.below(8) } else { 99 };
    for i in 0..spec.head_dim {
        let value = match (data, special) {
            (Data::AllEqual, _) => 0.5,
            (Data::Ties, _) => (rng.below(2) as f32 - 0.5) * 2.0 * if i == 0 { 1.0 } else { 0.0 },
            (_, 0) if i == 3 => f32::NAN,
            (_, 1) if i == 5 => f32::INFINITY,
            (_, 2) => 0.0,
            (_, 3) => 3.0e-6,
            (_, 4) => 6.0e4 * if spec.dtype == Dtype::F16 { 1.0 } else { 1e30 },
            (_, 5) => -0.0,
            (_, 6) if spec.dtype == Dtype::Bf16 => 1e-25,
            _ => rng.normal() * scale,
        };
        encode(spec.dtype, value, &mut row);
    }
    row
}

/// One tensor: which buffer of the layer, first byte, strides.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub buffer: usize,
    pub offset_bytes: u64,
    pub strides: Strides,
}

/// The places of K and V and the sizes of the layer's buffers, with guard bands.
pub fn places(layout: Layout, shape: &KvShape) -> (Place, Place, Vec<u64>) {
    const GUARD: u64 = 512;
    let (h, c) = (shape.num_kv_heads, shape.capacity);
    let elements = |spec: &TensorSpec, strides: &Strides| {
        (u64::from(shape.batch_size) - 1) * strides.batch
            + (u64::from(h) - 1) * strides.head
            + (u64::from(c) - 1) * strides.token
            + u64::from(spec.head_dim)
    };
    let bytes = |spec: &TensorSpec, strides: &Strides| elements(spec, strides) * u64::from(spec.dtype.size_bytes());
    let own = |spec: &TensorSpec, strides: Strides, buffer, offset_bytes| {
        (Place { buffer, offset_bytes, strides }, (offset_bytes + bytes(spec, &strides) + GUARD).next_multiple_of(4))
    };
    match layout {
        Layout::Hnd | Layout::Nhd => {
            let strides = |spec: &TensorSpec| {
                if layout == Layout::Hnd {
                    Strides::hnd(h, c, spec.head_dim)
                } else {
                    Strides::nhd(h, c, spec.head_dim)
                }
            };
            let (k, k_size) = own(&shape.keys, strides(&shape.keys), 0, 0);
            let (v, v_size) = own(&shape.values, strides(&shape.values), 1, 0);
            (k, v, vec![k_size, v_size])
        }
        Layout::Offset { words, pad_elements } => {
            let strides = |spec: &TensorSpec| {
                let token = u64::from(spec.head_dim) + pad_elements;
                let head = token * u64::from(c) + 3 * pad_elements;
                Strides { batch: head * u64::from(h) + 5 * pad_elements, head, token }
            };
            let (k, k_size) = own(&shape.keys, strides(&shape.keys), 0, words * 4);
            let (v, v_size) = own(&shape.values, strides(&shape.values), 1, words * 8);
            (k, v, vec![k_size, v_size])
        }
        Layout::Interleaved { words } => {
            assert_eq!(shape.keys.dtype, shape.values.dtype, "interleaved tensors share a dtype here");
            let token = u64::from(shape.keys.head_dim + shape.values.head_dim);
            let head = token * u64::from(c);
            let strides = Strides { batch: head * u64::from(h), head, token };
            let (k, _) = own(&shape.keys, strides, 0, words * 4);
            let offset = words * 4 + u64::from(shape.keys.row_bytes());
            let (v, size) = own(&shape.values, strides, 0, offset);
            (k, v, vec![size])
        }
        Layout::Touching => {
            let strides = |spec: &TensorSpec| Strides::hnd(h, c, spec.head_dim);
            let (k, _) = own(&shape.keys, strides(&shape.keys), 0, 64);
            let offset = 64 + bytes(&shape.keys, &strides(&shape.keys));
            let (v, size) = own(&shape.values, strides(&shape.values), 0, offset);
            (k, v, vec![size])
        }
    }
}

fn row_offset(place: &Place, spec: &TensorSpec, shape: &KvShape, row: u32, slot: u32) -> usize {
    let (b, h) = (u64::from(row / shape.num_kv_heads), u64::from(row % shape.num_kv_heads));
    let s = &place.strides;
    let elements = b * s.batch + h * s.head + u64::from(slot) * s.token;
    (place.offset_bytes + elements * u64::from(spec.dtype.size_bytes())) as usize
}

/// A layer's buffers on the host, and its rows as the reference sees them.
pub struct HostLayer {
    pub buffers: Vec<Vec<u8>>,
    pub keys: Place,
    pub values: Place,
    pub rows: Vec<CacheRow>,
}

impl HostLayer {
    pub fn new(case: &Case, rng: &mut Rng) -> Self {
        let (keys, values, sizes) = places(case.layout, &case.shape);
        let buffers = sizes.iter().map(|&size| (0..size).map(|_| rng.next() as u8).collect()).collect();
        let mut layer = Self { buffers, keys, values, rows: Vec::new() };
        for row in 0..case.shape.rows_per_layer() {
            let len = case.lengths[(row / case.shape.num_kv_heads) as usize];
            layer.rows.push(CacheRow::new(len));
            layer.write_tokens(case, row, 0..len, rng);
        }
        layer
    }

    fn write_tokens(&mut self, case: &Case, row: u32, slots: std::ops::Range<u32>, rng: &mut Rng) {
        let shape = &case.shape;
        for slot in slots {
            for (place, spec, data) in [(self.keys, &shape.keys, case.data), (self.values, &shape.values, Data::Random)]
            {
                let offset = row_offset(&place, spec, shape, row, slot);
                let bytes = make_row(spec, data, rng);
                self.buffers[place.buffer][offset..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    fn gather(&self, place: &Place, spec: &TensorSpec, shape: &KvShape, row: u32) -> Vec<u8> {
        let len = self.rows[row as usize].len;
        let bytes = spec.row_bytes() as usize;
        (0..len)
            .flat_map(|slot| {
                let offset = row_offset(place, spec, shape, row, slot);
                self.buffers[place.buffer][offset..][..bytes].to_vec()
            })
            .collect()
    }

    fn scatter(&mut self, place: Place, spec: &TensorSpec, shape: &KvShape, row: u32, rows: &[u8]) {
        for (slot, bytes) in rows.chunks_exact(spec.row_bytes() as usize).enumerate() {
            let offset = row_offset(&place, spec, shape, row, slot as u32);
            self.buffers[place.buffer][offset..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// The reference on every row; returns whether a key was not finite.
    pub fn compress(&mut self, case: &Case, layer: u32) -> bool {
        let shape = &case.shape;
        let mut non_finite = false;
        for row in 0..shape.rows_per_layer() {
            let mut keys = self.gather(&self.keys, &shape.keys, shape, row);
            let mut values = self.gather(&self.values, &shape.values, shape, row);
            let state = &mut self.rows[row as usize];
            non_finite |= reference::compress_row(
                &case.policy,
                layer,
                row,
                state,
                &shape.keys,
                &mut keys,
                &shape.values,
                &mut values,
            )
            .expect("a valid policy");
            self.scatter(self.keys, &shape.keys, shape, row, &keys);
            self.scatter(self.values, &shape.values, shape, row, &values);
        }
        non_finite
    }
}

pub fn upload(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("test"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&buffer, 0, bytes);
    buffer
}

pub fn download(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    let words = pollster::block_on(keynorm::kept::read_words(&gpu.device, &gpu.queue, buffer)).expect("a read-back");
    bytemuck::cast_slice(&words).to_vec()
}

/// Everything that a case keeps on the GPU.
pub struct Fixture {
    pub plan: Plan,
    pub state: CacheState,
    pub workspace: Workspace,
    pub bound: Bound,
    pub buffers: Vec<Vec<wgpu::Buffer>>,
    pub host: Vec<HostLayer>,
    pub rng: Rng,
}

impl Fixture {
    pub fn new(gpu: &Gpu, case: &Case) -> Self {
        let mut rng = Rng(case.seed);
        let host: Vec<HostLayer> = (0..case.shape.num_layers).map(|_| HostLayer::new(case, &mut rng)).collect();
        let buffers: Vec<Vec<wgpu::Buffer>> =
            host.iter().map(|layer| layer.buffers.iter().map(|b| upload(gpu, b)).collect()).collect();
        let compressor = Compressor::new(&gpu.device, case.options.clone()).expect("a compressor");
        let plan = compressor.plan(&case.shape, &case.policy).expect("a plan");
        let state = plan.create_state().expect("a state");
        let workspace = plan.create_workspace().expect("a workspace");
        let views: Vec<KvView<'_>> = host
            .iter()
            .zip(&buffers)
            .map(|(layer, buffers)| {
                let view = |place: &Place| TensorView {
                    buffer: &buffers[place.buffer],
                    offset_bytes: place.offset_bytes,
                    strides: place.strides,
                };
                KvView { keys: view(&layer.keys), values: view(&layer.values) }
            })
            .collect();
        let bound = plan.bind(&gpu.device, &views, &state, &workspace).expect("a binding");
        state.set_lengths(&gpu.queue, &case.lengths).expect("lengths");
        Self { plan, state, workspace, bound, buffers, host, rng }
    }

    /// Compresses on both sides and compares all memory and all state.
    pub fn compress_and_compare(&mut self, gpu: &Gpu, case: &Case, round: &str) {
        let max_len = self.host[0].rows.iter().map(|r| r.len).max().unwrap_or(0);
        let kept = pollster::block_on(self.bound.compress(&gpu.device, &gpu.queue, max_len)).expect("a compression");
        for (l, layer) in self.host.iter_mut().enumerate() {
            let skipped = case.policy.skip_layers.contains(&(l as u32));
            let non_finite = !skipped && layer.compress(case, l as u32);
            for (b, (expected, buffer)) in layer.buffers.iter().zip(&self.buffers[l]).enumerate() {
                let got = download(gpu, buffer);
                if let Some(at) = expected.iter().zip(&got).position(|(e, g)| e != g) {
                    panic!("{round}: layer {l} buffer {b} differs first at byte {at} of {}\n{case:?}", got.len());
                }
            }
            let got = &kept.layers[l];
            for (r, row) in layer.rows.iter().enumerate() {
                let expected: Vec<u32> = (0..row.len).map(|s| row.position_of(s)).collect();
                assert_eq!(got.positions[r], expected, "{round}: positions of layer {l} row {r}\n{case:?}");
                let seen = got.num_seen[r / case.shape.num_kv_heads as usize];
                assert_eq!(seen, row.num_seen, "{round}: num_seen of layer {l} row {r}\n{case:?}");
            }
            assert_eq!(
                got.status.contains(Status::NON_FINITE_KEY),
                non_finite,
                "{round}: non-finite status of layer {l}\n{case:?}"
            );
        }
    }

    /// Appends tokens to every row on both sides, as a runtime would.
    pub fn append(&mut self, gpu: &Gpu, case: &Case) {
        for (layer, buffers) in self.host.iter_mut().zip(&self.buffers) {
            for row in 0..case.shape.rows_per_layer() {
                let tokens = case.appended[(row / case.shape.num_kv_heads) as usize];
                let start = layer.rows[row as usize].len;
                layer.rows[row as usize].append(tokens);
                layer.write_tokens(case, row, start..start + tokens, &mut self.rng);
            }
            for (bytes, buffer) in layer.buffers.iter().zip(buffers) {
                gpu.queue.write_buffer(buffer, 0, bytes);
            }
        }
        self.state.set_append_counts(&gpu.queue, 3, &case.appended).expect("counts");
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.bound.record_append(&mut encoder.begin_compute_pass(&Default::default()), 3).expect("a record");
        gpu.queue.submit([encoder.finish()]);
    }
}

/// Runs a case; with `appended` tokens it goes on to a second compression.
pub fn run(case: &Case) {
    let gpu = gpu();
    let mut fixture = Fixture::new(gpu, case);
    fixture.compress_and_compare(gpu, case, "first");
    if !case.appended.is_empty() {
        fixture.append(gpu, case);
        fixture.compress_and_compare(gpu, case, "second");
    }
}
