//! One runner for all cases: builds a cache in poisoned memory, compresses it on the GPU and by the reference, and
//! compares every byte of every buffer.

use std::sync::{Mutex, OnceLock};

use keynorm::reference::key_norm::{self, Scored};
use keynorm::reference::pages::{self, SequenceTable};
use keynorm::reference::{self, CacheRow, RowTokens, budget, compact, top_k};
use keynorm::{
    Bound, CacheState, Compressor, Dtype, KvShape, KvView, Options, PageShape, PageTable, PagedKvView, Plan, Policy,
    Score, Segment, SequencePages, Status, Strides, Switch, TensorSpec, TensorView, Workspace,
};

/// A device and its queue, shared by the tests of the process.
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
}

pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| gpu_with(|_| ()))
}

/// A device of the same adapter with other limits.
pub fn gpu_with(edit: impl FnOnce(&mut wgpu::Limits)) -> Gpu {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let options = wgpu::RequestAdapterOptions::default();
    let adapter = pollster::block_on(instance.request_adapter(&options))
        .expect("no adapter: run the tests through scripts/with-adapter");
    let mut required_limits = keynorm::recommended_limits(&adapter);
    edit(&mut required_limits);
    let descriptor = wgpu::DeviceDescriptor {
        required_features: keynorm::optional_features(&adapter),
        required_limits,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    let info = adapter.get_info();
    println!(
        "adapter: {} ({}), subgroups {}..{}",
        info.name, info.driver_info, info.subgroup_min_size, info.subgroup_max_size
    );
    if let Ok(expected) = std::env::var("KEYNORM_EXPECT_SUBGROUP_SIZE") {
        assert_eq!(info.subgroup_min_size.to_string(), expected, "subgroup size of {}", info.name);
    }
    Gpu { device, queue, info }
}

/// A device of the same adapter whose workgroups have at most 256 invocations.
pub fn gpu_of_small_workgroups() -> Gpu {
    gpu_with(|limits| {
        limits.max_compute_invocations_per_workgroup = 256;
        limits.max_compute_workgroup_size_x = 256;
    })
}

/// Compressors by their options. Cases share them, so that a pipeline is compiled once.
#[derive(Default)]
pub struct Built(Mutex<Vec<(BuiltBy, Compressor)>>);

/// Subgroups, layers at once, largest binding.
type BuiltBy = (Switch, Switch, Option<u64>);

impl Built {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub fn compressor(&self, gpu: &Gpu, options: &Options) -> Compressor {
        let mut built = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let by = (options.subgroups, options.layers_at_once, options.max_binding_bytes);
        if let Some(found) = built.iter().find(|b| b.0 == by) {
            return found.1.clone();
        }
        let new = Compressor::new(&gpu.device, options.clone()).expect("a compressor");
        built.push((by, new.clone()));
        new
    }
}

/// The compressors of all cases of this process.
pub static BUILT: Built = Built::new();

/// Where the tensors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Hnd,
    Nhd,
    /// [token, batch, head, dim]
    TokenMajor,
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
    /// Squared norms from 1 on, many different ones within 4^spread of the selector's first digits.
    Near {
        spread: i32,
    },
    /// Four random elements, then zeros: cheap where rows are many.
    Sparse,
    /// Random keys times a power of two: their norms may lie outside the window of first digits.
    Scaled {
        power: i32,
    },
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
    /// Sequences that take part; empty: all.
    pub active: Vec<bool>,
    /// Of each sequence, for a policy that keeps to them.
    pub segments: Vec<Vec<Segment>>,
    /// The cache lies in pages; `layout` does not count then.
    pub paged: Option<Paged>,
    /// All layers lie in one buffer a tensor.
    pub one_buffer: bool,
    /// In passes of its own, not one of the caller's.
    pub encoded: bool,
    pub options: Options,
    pub seed: u64,
}

/// How the pages of a pool hold tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageLayout {
    /// Two pools of [page, head, slot, dim].
    Hnd,
    /// Two pools of [page, slot, head, dim].
    Nhd,
    /// One pool of [page, 2, head, slot, dim].
    OnePool,
    /// [page, head, slot, dim] at an odd word, pages padded apart, the table at an offset, with gaps between its rows.
    Offset,
}

/// A paged cache: pages in shuffled order, some of the pool's left over.
#[derive(Debug, Clone)]
pub struct Paged {
    pub page_size: u32,
    pub layout: PageLayout,
    pub has_sentinel: bool,
    /// Of each sequence, pages; they lie in the same pages of the pool for all sequences. Empty: none.
    pub first_writable: Vec<u32>,
    /// (sequence, entry, id) to write into the tables, which are sound otherwise.
    pub faults: Vec<(u32, u32, u32)>,
}

impl Paged {
    pub fn new(page_size: u32, layout: PageLayout) -> Self {
        Self { page_size, layout, has_sentinel: false, first_writable: Vec::new(), faults: Vec::new() }
    }

    fn pages_a_sequence(&self, shape: &KvShape) -> u32 {
        shape.capacity / self.page_size
    }

    /// A few pages more than the sequences have.
    pub fn shape(&self, shape: &KvShape) -> PageShape {
        let num_pages = self.pages_a_sequence(shape) * shape.batch_size + 5;
        PageShape { page_size: self.page_size, num_pages, has_sentinel: self.has_sentinel }
    }

    fn first_writable(&self, sequence: u32) -> u32 {
        self.first_writable.get(sequence as usize).copied().unwrap_or(0)
    }

    /// Entries from one sequence to the next, and the words before the first.
    fn table_layout(&self, shape: &KvShape) -> (u32, u32) {
        let pages = self.pages_a_sequence(shape);
        if self.layout == PageLayout::Offset { (pages + 3, 7) } else { (pages, 0) }
    }

    /// The table as words of its buffer. Layers of one seed have the same.
    fn table(&self, shape: &KvShape, rng: &mut Rng) -> Vec<u32> {
        let first = u32::from(self.has_sentinel);
        let mut ids: Vec<u32> = (first..self.shape(shape).num_pages).collect();
        for ix in (1..ids.len()).rev() {
            ids.swap(ix, rng.below(ix as u64 + 1) as usize);
        }
        let (stride, base) = self.table_layout(shape);
        let mut words = vec![u32::MAX; (base + shape.batch_size * stride) as usize + 9];
        let prefix: Vec<u32> = ids.clone();
        let mut next = self.first_writable.iter().copied().max().unwrap_or(0) as usize;
        for sequence in 0..shape.batch_size {
            for entry in 0..self.pages_a_sequence(shape) {
                let is_shared = entry < self.first_writable(sequence);
                let word = (base + sequence * stride + entry) as usize;
                words[word] = if is_shared { prefix[entry as usize] } else { ids[next] };
                next += usize::from(!is_shared);
            }
        }
        for &(sequence, entry, id) in &self.faults {
            words[(base + sequence * stride + entry) as usize] = id;
        }
        words
    }

    /// As [`places`], the table's buffer last.
    fn places(&self, shape: &KvShape) -> (Place, Place, Vec<u64>) {
        let pool = KvShape { batch_size: self.shape(shape).num_pages, capacity: self.page_size, ..*shape };
        let layout = match self.layout {
            PageLayout::Hnd => Layout::Hnd,
            PageLayout::Nhd => Layout::Nhd,
            PageLayout::Offset => Layout::Offset { words: 1, pad_elements: 2 },
            PageLayout::OnePool => {
                let bytes = u64::from(shape.keys.dtype.size_bytes());
                let one = Strides::hnd(shape.num_kv_heads, self.page_size, shape.keys.row_units());
                let strides = Strides { batch: 2 * one.batch, ..one };
                let place = |offset_bytes| Place { buffer: 0, offset_bytes, strides };
                let size = u64::from(pool.batch_size) * strides.batch * bytes + 512;
                return (place(0), place(one.batch * bytes), vec![size]);
            }
        };
        places(layout, &pool)
    }
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
            active: Vec::new(),
            segments: Vec::new(),
            paged: None,
            one_buffer: false,
            encoded: false,
            options: Options::default(),
            seed: 1,
        }
    }

    fn is_active(&self, row: u32) -> bool {
        self.active.is_empty() || self.active[(row / self.shape.num_kv_heads) as usize]
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
        Dtype::F8E4M3 => out.push(float8::F8E4M3::from_f32(value).to_bits()),
        Dtype::F8E5M2 if value == f32::INFINITY => out.push(0x7c), // which the crate saturates
        Dtype::F8E5M2 => out.push(float8::F8E5M2::from_f32(value).to_bits()),
        other => panic!("{other:?} has no elements of its own"),
    }
}

/// One token's row of blocks.
fn make_blocks(spec: &TensorSpec, data: Data, rng: &mut Rng) -> Vec<u8> {
    let special = if data == Data::Special { rng.below(12) } else { 99 };
    let (scale_bytes, block_bytes) = match spec.dtype {
        Dtype::Q8_0 => (2, 34),
        Dtype::Q4_0 => (2, 18),
        _ => (4, spec.row_bytes() as usize),
    };
    let mut row = Vec::new();
    for block in 0..spec.row_bytes() as usize / block_bytes {
        let scale = match (data, special, block) {
            (Data::AllEqual | Data::Ties, ..) => 0.5,
            (Data::Scaled { power }, ..) => 2.0_f32.powi(power) * 0.01,
            (_, 0, 0) => f32::NAN,
            (_, 1, 1) | (_, 2, 0) => f32::INFINITY,
            (_, 3, _) => 0.0,
            (_, 4, _) => 6.0e-8,
            (_, 5, _) => -0.03,
            (_, 6, _) => 1e-25,
            (_, 7, _) => 6.0e4 * if scale_bytes == 4 { 1e30 } else { 1.0 },
            // At the smallest that counts, and just below.
            (_, 8, _) => 2.0_f32.powi(-63),
            (_, 9, _) => 2.0_f32.powi(-63) * 0.99,
            _ => (0.2 + rng.below(1000) as f32 / 500.0) / 100.0,
        };
        encode(if scale_bytes == 4 { Dtype::F32 } else { Dtype::F16 }, scale, &mut row);
        for i in scale_bytes..block_bytes {
            let zero = if spec.dtype == Dtype::Q4_0 { 0x88 } else { 0 };
            row.push(match (data, special) {
                (Data::Sparse, _) if i > scale_bytes + 3 => zero,
                (Data::AllEqual, _) => 0x5a,
                (Data::Ties, _) => zero + rng.below(2) as u8 * u8::from(i == scale_bytes),
                (_, 7 | 10) if block == 0 => zero,
                (_, 11) => {
                    if spec.dtype == Dtype::Q4_0 {
                        0
                    } else {
                        0x80
                    }
                }
                _ => rng.next() as u8,
            });
        }
    }
    row
}

/// One token's row.
pub fn make_row(spec: &TensorSpec, data: Data, rng: &mut Rng) -> Vec<u8> {
    if spec.dtype.is_quantised() {
        return make_blocks(spec, data, rng);
    }
    let mut row = Vec::new();
    let scale = 0.2 + rng.below(1000) as f32 / 500.0;
    let special = if data == Data::Special { rng.below(12) } else { 99 };
    // The smallest magnitude that counts; f32 squares must not be subnormal, which devices may flush to zero.
    let tiny = 2.0_f32.powi(match spec.dtype {
        Dtype::F32 => -60,
        Dtype::F16 => -24,
        Dtype::F8E4M3 => -9,
        Dtype::F8E5M2 => -16,
        _ => -63,
    });
    for i in 0..if data == Data::Sparse { 4 } else { spec.head_dim } {
        let value = match (data, special) {
            (Data::AllEqual, _) => 0.5,
            (Data::Near { .. }, _) if i == 0 => 1.0,
            (Data::Near { spread }, _) if i < 3 => rng.below(256) as f32 * 2.0_f32.powi(spread - 12),
            (Data::Near { .. }, _) => 0.0,
            (Data::Scaled { power }, _) => rng.normal() * scale * 2.0_f32.powi(power),
            (Data::Ties, _) => (rng.below(2) as f32 - 0.5) * 2.0 * if i == 0 { 1.0 } else { 0.0 },
            (_, 0) if i == 3 => f32::NAN,
            (_, 1) if i == 5 => f32::INFINITY,
            (_, 2) => 0.0,
            (_, 3) => 3.0e-6,
            (_, 4) if matches!(spec.dtype, Dtype::F32 | Dtype::Bf16) => 6e34,
            (_, 4) => 6.0e4, // which E4M3 saturates
            (_, 5) => -0.0,
            (_, 6) if spec.dtype == Dtype::Bf16 => 1e-25,
            // At the smallest magnitude that counts, and just below.
            (_, 7) => -tiny,
            (_, 8) => tiny * 0.99,
            _ => rng.normal() * scale,
        };
        encode(spec.dtype, value, &mut row);
    }
    row.resize(spec.row_bytes() as usize, 0);
    if special == 9 {
        // The NaN next to infinity, in the high half of a word.
        let bits = match spec.dtype {
            Dtype::F32 => 0x7f80_0001_u32.to_le_bytes(),
            Dtype::F16 => 0x7c01_0000_u32.to_le_bytes(),
            Dtype::F8E4M3 => 0x7f00_0000_u32.to_le_bytes(),
            Dtype::F8E5M2 => 0x7d00_0000_u32.to_le_bytes(),
            _ => 0x7f81_0000_u32.to_le_bytes(),
        };
        row[8..12].copy_from_slice(&bits);
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
            + u64::from(spec.row_units())
    };
    let bytes = |spec: &TensorSpec, strides: &Strides| elements(spec, strides) * u64::from(spec.dtype.size_bytes());
    let own = |spec: &TensorSpec, strides: Strides, buffer, offset_bytes| {
        (Place { buffer, offset_bytes, strides }, (offset_bytes + bytes(spec, &strides) + GUARD).next_multiple_of(4))
    };
    match layout {
        Layout::Hnd | Layout::Nhd | Layout::TokenMajor => {
            let strides = |spec: &TensorSpec| {
                let head = u64::from(spec.row_units());
                let batch = head * u64::from(h);
                match layout {
                    Layout::Hnd => Strides::hnd(h, c, spec.row_units()),
                    Layout::Nhd => Strides::nhd(h, c, spec.row_units()),
                    _ => Strides { batch, head, token: batch * u64::from(shape.batch_size) },
                }
            };
            let (k, k_size) = own(&shape.keys, strides(&shape.keys), 0, 0);
            let (v, v_size) = own(&shape.values, strides(&shape.values), 1, 0);
            (k, v, vec![k_size, v_size])
        }
        Layout::Offset { words, pad_elements } => {
            let strides = |spec: &TensorSpec| {
                let token = u64::from(spec.row_units()) + pad_elements;
                let head = token * u64::from(c) + 3 * pad_elements;
                Strides { batch: head * u64::from(h) + 5 * pad_elements, head, token }
            };
            let (k, k_size) = own(&shape.keys, strides(&shape.keys), 0, words * 4);
            let (v, v_size) = own(&shape.values, strides(&shape.values), 1, words * 8);
            (k, v, vec![k_size, v_size])
        }
        Layout::Interleaved { words } => {
            assert_eq!(shape.keys.dtype, shape.values.dtype, "interleaved tensors share a dtype here");
            let token = u64::from(shape.keys.row_units() + shape.values.row_units());
            let head = token * u64::from(c);
            let strides = Strides { batch: head * u64::from(h), head, token };
            let (k, _) = own(&shape.keys, strides, 0, words * 4);
            let offset = words * 4 + u64::from(shape.keys.row_bytes());
            let (v, size) = own(&shape.values, strides, 0, offset);
            (k, v, vec![size])
        }
        Layout::Touching => {
            let strides = |spec: &TensorSpec| Strides::hnd(h, c, spec.row_units());
            let (k, _) = own(&shape.keys, strides(&shape.keys), 0, 64);
            let offset = 64 + bytes(&shape.keys, &strides(&shape.keys));
            let (v, size) = own(&shape.values, strides(&shape.values), 0, offset);
            (k, v, vec![size])
        }
    }
}

pub fn row_offset(place: &Place, spec: &TensorSpec, shape: &KvShape, row: u32, slot: u32) -> usize {
    let (b, h) = (u64::from(row / shape.num_kv_heads), u64::from(row % shape.num_kv_heads));
    let s = &place.strides;
    let elements = b * s.batch + h * s.head + u64::from(slot) * s.token;
    (place.offset_bytes + elements * u64::from(spec.dtype.size_bytes())) as usize
}

/// A layer's buffers on the host, and its rows as the reference sees them.
pub struct HostLayer {
    pub buffers: Vec<Vec<u8>>,
    /// Where they begin in the buffers of the GPU, bytes.
    pub bases: Vec<u64>,
    pub keys: Place,
    pub values: Place,
    pub rows: Vec<CacheRow>,
    /// Sticky bits, as [`Status`].
    pub status: u32,
    /// Of a paged cache, whose table is the last buffer.
    pub paged: Option<Paged>,
    /// What the last compression has left of each sequence's pages.
    pub pages: Vec<SequencePages>,
}

impl HostLayer {
    pub fn new(case: &Case, rng: &mut Rng) -> Self {
        let shape = &case.shape;
        let (keys, values, sizes) = case.paged.as_ref().map_or_else(|| places(case.layout, shape), |p| p.places(shape));
        let mut buffers: Vec<Vec<u8>> =
            sizes.iter().map(|&size| (0..size).map(|_| rng.next() as u8).collect()).collect();
        let paged = case.paged.clone();
        if let Some(paged) = &paged {
            buffers.push(bytemuck::cast_slice(&paged.table(shape, &mut Rng(case.seed + 1000))).to_vec());
        }
        let bases = vec![0; buffers.len()];
        let mut layer = Self { buffers, bases, keys, values, rows: Vec::new(), status: 0, paged, pages: Vec::new() };
        for row in 0..case.shape.rows_per_layer() {
            let len = case.lengths[(row / case.shape.num_kv_heads) as usize];
            layer.rows.push(CacheRow::new(len));
            layer.write_tokens(case, row, 0..len, rng);
        }
        layer
    }

    pub fn write_tokens(&mut self, case: &Case, row: u32, slots: std::ops::Range<u32>, rng: &mut Rng) {
        let shape = &case.shape;
        for slot in slots {
            // Values matter as bits alone, but to the score that looks at them.
            let values = match case.data {
                Data::Sparse => Data::Sparse,
                Data::Special if case.policy.score == Score::ValueKeyRatio => Data::Special,
                _ => Data::Random,
            };
            for (place, spec, data) in [(self.keys, &shape.keys, case.data), (self.values, &shape.values, values)] {
                let bytes = make_row(spec, data, rng);
                let Some(offset) = self.offset(&place, spec, shape, row, slot) else { continue };
                self.buffers[place.buffer][offset..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    pub fn gather(&self, place: &Place, spec: &TensorSpec, shape: &KvShape, row: u32) -> Vec<u8> {
        let len = self.rows[row as usize].len;
        let bytes = spec.row_bytes() as usize;
        let mut rows = Vec::with_capacity(len as usize * bytes);
        for slot in 0..len {
            // A row whose table is faulty is gathered and not looked at.
            match self.offset(place, spec, shape, row, slot) {
                Some(offset) => rows.extend_from_slice(&self.buffers[place.buffer][offset..][..bytes]),
                None => rows.resize(rows.len() + bytes, 0),
            }
        }
        rows
    }

    pub fn scatter(&mut self, place: Place, spec: &TensorSpec, shape: &KvShape, row: u32, rows: &[u8]) {
        for (slot, bytes) in rows.chunks_exact(spec.row_bytes() as usize).enumerate() {
            let offset = self.offset(&place, spec, shape, row, slot as u32).expect("a sound table");
            self.buffers[place.buffer][offset..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// First byte of a token; none where the table names a page that the pool has not.
    fn offset(&self, place: &Place, spec: &TensorSpec, shape: &KvShape, row: u32, slot: u32) -> Option<usize> {
        let Some(paged) = &self.paged else { return Some(row_offset(place, spec, shape, row, slot)) };
        let entries = self.entries(paged, shape, row / shape.num_kv_heads);
        let (page, slot) = pages::place(paged.page_size, &entries, slot);
        let pool_row = page.checked_mul(shape.num_kv_heads)? + row % shape.num_kv_heads;
        (page < paged.shape(shape).num_pages).then(|| row_offset(place, spec, shape, pool_row, slot))
    }

    /// A sequence's row of the table.
    fn entries(&self, paged: &Paged, shape: &KvShape, sequence: u32) -> Vec<u32> {
        let (stride, base) = paged.table_layout(shape);
        let words: &[u32] = bytemuck::cast_slice(self.buffers.last().expect("a table"));
        words[(base + sequence * stride) as usize..][..paged.pages_a_sequence(shape) as usize].to_vec()
    }

    fn longest(&self, shape: &KvShape, sequence: u32) -> u32 {
        let heads = shape.num_kv_heads as usize;
        self.rows[sequence as usize * heads..][..heads].iter().map(|r| r.len).max().unwrap_or(0)
    }

    /// Which sequences the tables of these layers, which are the same, make a compression skip.
    pub fn bad_sequences(layers: &[&Self], case: &Case) -> Vec<bool> {
        let shape = &case.shape;
        let Some(paged) = layers.first().and_then(|l| l.paged.as_ref()) else {
            return vec![false; shape.batch_size as usize];
        };
        let entries: Vec<Vec<u32>> = (0..shape.batch_size).map(|s| layers[0].entries(paged, shape, s)).collect();
        let sequence = |s: u32| SequenceTable {
            entries: &entries[s as usize],
            longest: layers.iter().map(|l| l.longest(shape, s)).max().unwrap_or(0),
            first_writable: paged.first_writable(s),
            active: case.is_active(s * shape.num_kv_heads),
        };
        let sequences: Vec<_> = (0..shape.batch_size).map(sequence).collect();
        pages::bad_sequences(&paged.shape(shape), &sequences)
    }

    /// The reference on every active row.
    pub fn compress(&mut self, case: &Case, layer: u32) {
        self.compress_scored(case, layer, &[]);
    }

    /// As [`Self::compress`] with the caller's scores, a word for each slot of each row.
    pub fn compress_scored(&mut self, case: &Case, layer: u32, scores: &[Vec<u32>]) {
        let shape = &case.shape;
        let values: Vec<Vec<u8>> =
            (0..shape.rows_per_layer()).map(|r| self.gather(&self.values, &shape.values, shape, r)).collect();
        self.compress_by(case, layer, |row_ix, row, keys| {
            let scores = scores.get(row_ix as usize).map_or(&[][..], |s| s);
            let values = &values[row_ix as usize];
            let (keys_spec, values_spec) = (&shape.keys, &shape.values);
            let tokens = RowTokens { keys_spec, keys, values_spec, values, scores };
            reference::score_row(&case.policy, layer, row_ix, row, &tokens).expect("a score for each token")
        });
    }

    /// The reference's budgets, selection and moves, by order keys of another origin.
    pub fn compress_by(&mut self, case: &Case, layer: u32, score: impl Fn(u32, &CacheRow, &[u8]) -> Scored) {
        let shape = &case.shape;
        let bad = Self::bad_sequences(&[&*self], case);
        let before: Vec<u32> = (0..shape.batch_size).map(|s| self.longest(shape, s)).collect();
        for sequence in 0..shape.batch_size {
            let rows = sequence * shape.num_kv_heads..(sequence + 1) * shape.num_kv_heads;
            if !case.is_active(rows.start) {
                continue;
            }
            if bad[sequence as usize] {
                self.status |= Status::BAD_PAGE.0;
                continue;
            }
            let mut order_keys = Vec::new();
            for row in rows.clone() {
                let keys = self.gather(&self.keys, &shape.keys, shape, row);
                let mut scored = score(row, &self.rows[row as usize], &keys);
                if let Some(paged) = &self.paged {
                    let first = paged.first_writable(sequence) * paged.page_size;
                    pages::protect_prefix(&mut scored.order_keys, first);
                }
                // What is protected fills quotas too.
                if let (true, Some(segments)) = (case.policy.segments, case.segments.get(sequence as usize)) {
                    key_norm::reserve(&mut scored.order_keys, &self.rows[row as usize], segments);
                }
                self.status |= if scored.non_finite { Status::NON_FINITE_KEY.0 } else { 0 };
                order_keys.push(scored.order_keys);
            }
            let budgets = budget::head_budgets(&case.policy, layer, &order_keys).expect("a valid policy");
            for ((row, order_keys), budget) in rows.zip(&order_keys).zip(budgets) {
                let selection = top_k::keep(order_keys, budget, case.policy.order);
                let mut keys = self.gather(&self.keys, &shape.keys, shape, row);
                let mut values = self.gather(&self.values, &shape.values, shape, row);
                compact::move_rows(&selection, shape.keys.row_bytes() as usize, &mut keys);
                compact::move_rows(&selection, shape.values.row_bytes() as usize, &mut values);
                self.rows[row as usize].finish(&selection);
                self.status |= if selection.raised { Status::BUDGET_RAISED.0 } else { 0 };
                self.scatter(self.keys, &shape.keys, shape, row, &keys);
                self.scatter(self.values, &shape.values, shape, row, &values);
            }
        }
        if let Some(paged) = &self.paged {
            let sequence = |(s, &before): (u32, &u32)| {
                pages::freed(paged.page_size, &self.entries(paged, shape, s), before, self.longest(shape, s))
            };
            self.pages = (0..).zip(&before).map(sequence).collect();
        }
    }

    /// Appends tokens to every active row.
    pub fn append(&mut self, case: &Case, rng: &mut Rng) {
        for row in (0..case.shape.rows_per_layer()).filter(|&row| case.is_active(row)) {
            let tokens = case.appended[(row / case.shape.num_kv_heads) as usize];
            let start = self.rows[row as usize].len;
            self.rows[row as usize].append(tokens);
            self.write_tokens(case, row, start..start + tokens, rng);
        }
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

fn upload_each(gpu: &Gpu, host: &[HostLayer]) -> Vec<Vec<wgpu::Buffer>> {
    host.iter().map(|layer| layer.buffers.iter().map(|b| upload(gpu, b)).collect()).collect()
}

/// The layers after each other, a buffer to each of theirs.
fn upload_as_one(gpu: &Gpu, host: &mut [HostLayer]) -> Vec<Vec<wgpu::Buffer>> {
    let num_buffers = host[0].buffers.len();
    let as_one = |b: usize, host: &mut [HostLayer]| {
        let mut bytes = Vec::new();
        for layer in host {
            layer.bases[b] = bytes.len() as u64;
            bytes.extend_from_slice(&layer.buffers[b]);
            bytes.resize(bytes.len().next_multiple_of(16), 0xa5);
        }
        upload(gpu, &bytes)
    };
    let buffers: Vec<_> = (0..num_buffers).map(|b| as_one(b, host)).collect();
    vec![buffers; host.len()]
}

/// Some bytes of a buffer.
fn download_part(gpu: &Gpu, buffer: &wgpu::Buffer, base: u64, len: usize) -> Vec<u8> {
    let bytes = download(gpu, buffer);
    bytes[base as usize..][..len].to_vec()
}

pub fn download(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    let words = pollster::block_on(keynorm::kept::read_words(&gpu.device, &gpu.queue, buffer)).expect("a read-back");
    bytemuck::cast_slice(&words).to_vec()
}

/// Everything that a case keeps on the GPU.
pub struct Fixture {
    pub state: CacheState,
    pub workspace: Workspace,
    pub bound: Bound,
    pub buffers: Vec<Vec<wgpu::Buffer>>,
    pub host: Vec<HostLayer>,
    pub rng: Rng,
}

impl Fixture {
    pub fn new(gpu: &Gpu, case: &Case) -> Self {
        Self::built(gpu, case, &BUILT)
    }

    pub fn built(gpu: &Gpu, case: &Case, built: &Built) -> Self {
        let mut rng = Rng(case.seed);
        let host = (0..case.shape.num_layers).map(|_| HostLayer::new(case, &mut rng)).collect();
        Self::of(gpu, case, host, rng, built)
    }

    pub fn of(gpu: &Gpu, case: &Case, host: Vec<HostLayer>, rng: Rng, built: &Built) -> Self {
        let mut host = host;
        let buffers = if case.one_buffer { upload_as_one(gpu, &mut host) } else { upload_each(gpu, &host) };
        let plan = built.compressor(gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
        let state = plan.create_state().expect("a state");
        let workspace = plan.create_workspace().expect("a workspace");
        let bound = bind(gpu, &plan, &host, &buffers, &state, &workspace);
        state.set_lengths(&gpu.queue, &case.lengths).expect("lengths");
        if !case.active.is_empty() {
            state.set_active(&gpu.queue, &case.active).expect("a mask");
        }
        if let Some(paged) = case.paged.as_ref().filter(|p| !p.first_writable.is_empty()) {
            state.set_first_writable(&gpu.queue, &paged.first_writable).expect("first pages");
        }
        for (sequence, segments) in (0..).zip(&case.segments) {
            state.set_segments(&gpu.queue, sequence, segments).expect("segments");
        }
        Self { state, workspace, bound, buffers, host, rng }
    }

    /// Starts anew with fresh tokens in the same buffers, state and workspace.
    pub fn restart(&mut self, gpu: &Gpu, case: &Case) {
        self.rng = Rng(case.seed);
        for host in &mut self.host {
            let bases = std::mem::take(&mut host.bases);
            *host = HostLayer { bases, ..HostLayer::new(case, &mut self.rng) };
        }
        self.upload_all(gpu);
        self.state.set_lengths(&gpu.queue, &case.lengths).expect("lengths");
        self.state.clear_status(&gpu.queue);
    }

    /// Takes over what the GPU holds.
    pub fn download_all(&mut self, gpu: &Gpu) {
        for (layer, buffers) in self.host.iter_mut().zip(&self.buffers) {
            for ((bytes, buffer), &base) in layer.buffers.iter_mut().zip(buffers).zip(&layer.bases) {
                *bytes = download_part(gpu, buffer, base, bytes.len());
            }
        }
    }

    pub fn upload_all(&self, gpu: &Gpu) {
        for (layer, buffers) in self.host.iter().zip(&self.buffers) {
            for ((bytes, buffer), &base) in layer.buffers.iter().zip(buffers).zip(&layer.bases) {
                gpu.queue.write_buffer(buffer, base, bytes);
            }
        }
    }

    pub fn max_len(&self) -> u32 {
        self.host.iter().flat_map(|l| &l.rows).map(|r| r.len).max().unwrap_or(0)
    }

    /// Compresses on both sides and compares all memory and all state.
    pub fn compress_and_compare(&mut self, gpu: &Gpu, case: &Case, round: &str) {
        let max_len = self.max_len();
        if case.encoded {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            self.bound.encode(&mut encoder, max_len).expect("a record");
            gpu.queue.submit([encoder.finish()]);
        } else {
            submit(gpu, |pass| self.bound.record(pass, max_len).expect("a record"));
        }
        self.compress_host(case);
        self.compare(gpu, case, round);
    }

    pub fn compress_host(&mut self, case: &Case) {
        for (l, layer) in (0..).zip(&mut self.host) {
            if !case.policy.skip_layers.contains(&l) {
                layer.compress(case, l);
            }
        }
    }

    /// Compares all memory and all state.
    pub fn compare(&self, gpu: &Gpu, case: &Case, round: &str) {
        let kept = pollster::block_on(self.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
        for (l, layer) in self.host.iter().enumerate() {
            for (b, (expected, buffer)) in layer.buffers.iter().zip(&self.buffers[l]).enumerate() {
                let got = download_part(gpu, buffer, layer.bases[b], expected.len());
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
            assert_eq!(got.status, Status(layer.status), "{round}: status of layer {l}\n{case:?}");
        }
        self.compare_norms(gpu, case, round);
        if let Some(freed) = self.bound.freed_pages() {
            let got = pollster::block_on(freed.read(&gpu.device, &gpu.queue)).expect("a read-back");
            for (l, layer) in self.host.iter().enumerate().filter(|l| !l.1.pages.is_empty()) {
                assert_eq!(got[l], layer.pages, "{round}: pages of layer {l}\n{case:?}");
            }
        }
    }

    /// Norms that the state says are known must be those of the keys in their slots.
    fn compare_norms(&self, gpu: &Gpu, case: &Case, round: &str) {
        let Some(norms) = self.state.key_norms().filter(|_| self.state.key_sums().is_none()) else { return };
        let (norms, meta) = (download(gpu, norms), download(gpu, self.state.meta()));
        let (norms, meta): (&[u32], &[u32]) = (bytemuck::cast_slice(&norms), bytemuck::cast_slice(&meta));
        let shape = &case.shape;
        for (l, layer) in (0..).zip(&self.host) {
            for r in 0..shape.rows_per_layer() {
                let row = l * shape.rows_per_layer() + r;
                let scored = meta[(self.state.offsets().scored + row) as usize];
                let keys = layer.gather(&layer.keys, &shape.keys, shape, r);
                for (slot, key) in (0..scored).zip(keys.chunks_exact(shape.keys.row_bytes() as usize)) {
                    let got = norms[(row * shape.capacity + slot) as usize];
                    let expected = key_norm::squared_norm(&shape.keys, key);
                    let is_it = got == u32::MAX || is_norm(&shape.keys, got, expected);
                    assert!(is_it, "{round}: norm {got:#x} of layer {l} row {r} slot {slot}: {expected:?}\n{case:?}");
                }
            }
        }
    }

    /// Appends tokens to every row on both sides, as a runtime would.
    pub fn append(&mut self, gpu: &Gpu, case: &Case) {
        let mut rng = Rng(self.rng.0);
        self.append_by(gpu, case, |layer| layer.append(case, &mut rng));
        self.rng = rng;
    }

    /// Likewise, with the tokens that `append` writes on the host; three more are counted and taken back.
    pub fn append_by(&mut self, gpu: &Gpu, case: &Case, mut append: impl FnMut(&mut HostLayer)) {
        for layer in &mut self.host {
            append(layer);
        }
        self.upload_all(gpu);
        let more: Vec<u32> = case.appended.iter().map(|&count| 3.min(case.shape.capacity - count)).collect();
        let all: Vec<u32> = case.appended.iter().zip(&more).map(|(count, more)| count + more).collect();
        self.state.set_append_counts(&gpu.queue, 3, &all).expect("counts");
        self.state.set_append_counts(&gpu.queue, 4, &more).expect("counts");
        submit(gpu, |pass| {
            self.bound.record_append(pass, 3).expect("a record");
            self.bound.record_truncate(pass, 4).expect("a record");
        });
    }

    /// Takes tokens of every active row back, on both sides.
    pub fn truncate(&mut self, gpu: &Gpu, case: &Case, counts: &[u32]) {
        self.state.set_append_counts(&gpu.queue, 5, counts).expect("counts");
        submit(gpu, |pass| self.bound.record_truncate(pass, 5).expect("a record"));
        for (ix, row) in self.host.iter_mut().flat_map(|layer| (0..).zip(&mut layer.rows)) {
            if case.is_active(ix) {
                row.truncate(counts[(ix / case.shape.num_kv_heads) as usize]);
            }
        }
    }
}

/// Bits of a norm, NaN by its one pattern; f32 squares may be fused into their sum, or flushed to zero.
fn is_norm(spec: &TensorSpec, got: u32, expected: Option<f32>) -> bool {
    let Some(expected) = expected else { return got == 0x7fc0_0000 };
    let (got, expected) = (f32::from_bits(got), expected.min(f32::INFINITY));
    let slack = if spec.dtype == Dtype::F32 { expected * spec.head_dim as f32 / 16_777_216.0 } else { 0.0 };
    got == expected || (got - expected).abs() <= slack
}

pub fn bind(
    gpu: &Gpu,
    plan: &Plan,
    host: &[HostLayer],
    buffers: &[Vec<wgpu::Buffer>],
    state: &CacheState,
    workspace: &Workspace,
) -> Bound {
    bind_with_scores(gpu, plan, (host, buffers), &[], state, workspace)
}

pub fn bind_with_scores(
    gpu: &Gpu,
    plan: &Plan,
    (host, buffers): (&[HostLayer], &[Vec<wgpu::Buffer>]),
    scores: &[TensorView<'_>],
    state: &CacheState,
    workspace: &Workspace,
) -> Bound {
    fn view<'a>(layer: &HostLayer, place: &Place, buffers: &'a [wgpu::Buffer]) -> TensorView<'a> {
        let offset_bytes = layer.bases[place.buffer] + place.offset_bytes;
        TensorView { buffer: &buffers[place.buffer], offset_bytes, strides: place.strides }
    }
    if let Some(paged) = host.first().and_then(|layer| layer.paged.as_ref()) {
        let shape = plan.shape();
        let (stride, base) = paged.table_layout(shape);
        // The first layer's table serves all layers, as in most runtimes.
        let table = buffers[0].last().expect("a table");
        let table = PageTable { buffer: table, offset_bytes: u64::from(base) * 4, stride: stride.into() };
        let views: Vec<PagedKvView<'_>> = host
            .iter()
            .zip(buffers)
            .map(|(layer, b)| PagedKvView {
                keys: view(layer, &layer.keys, b),
                values: view(layer, &layer.values, b),
                table,
            })
            .collect();
        let pages = paged.shape(shape);
        return plan.bind_paged_with_scores(&gpu.device, &pages, &views, scores, state, workspace).expect("a binding");
    }
    let views: Vec<KvView<'_>> = host
        .iter()
        .zip(buffers)
        .map(|(layer, b)| KvView { keys: view(layer, &layer.keys, b), values: view(layer, &layer.values, b) })
        .collect();
    plan.bind_with_scores(&gpu.device, &views, scores, state, workspace).expect("a binding")
}

/// One pass, submitted.
pub fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    record(&mut encoder.begin_compute_pass(&Default::default()));
    gpu.queue.submit([encoder.finish()]);
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

/// A number from the environment.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}
