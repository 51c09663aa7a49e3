//! Keys and values on the device: made there, kept in a pristine copy, restored before every repetition, and summed up
//! after it. The host twins of `shaders/generate.wgsl` and `shaders/verify.wgsl` are the tests' business and the check's.

use clap::ValueEnum;
use keynorm::{CacheState, Dtype, KvShape, TensorSpec};

use crate::gpu::{Gpu, Kernel, Result, part};

/// How the norms of keys lie, on which it depends how much a selection has to narrow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Norms {
    /// Over a factor of four.
    #[default]
    Wide,
    /// Within some 10 %, as of a model that normalises its keys.
    Close,
    /// Within 1 %.
    Alike,
    /// The same: what is kept are the first tokens, and nothing moves.
    Equal,
    /// As wide, but 64 times as large, beyond the window in which first digits are narrow.
    Far,
}

impl Norms {
    /// First scale, number of scales, flatness and the bits of the unit, for `shaders/generate.wgsl`.
    const fn params(self, dtype: Dtype) -> [u32; 4] {
        // Quants are smaller than what others are scaled from, so that norms come out about the same.
        let unit = match dtype {
            Dtype::Q8_0 | Dtype::I8Scaled => 2.0,
            Dtype::Q4_0 => 32.0,
            _ => 1.0,
        } / 32768.0;
        match self {
            Self::Wide => [64, 192, 0, f32::to_bits(unit)],
            Self::Close => [255, 1, 0, f32::to_bits(unit)],
            Self::Alike => [255, 1, 1, f32::to_bits(unit)],
            Self::Equal => [255, 1, 2, f32::to_bits(unit)],
            Self::Far => [64, 192, 0, f32::to_bits(64.0 * unit)],
        }
    }

    /// As the command line has it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// One tensor of one layer: what is compressed, and what it is restored from.
#[derive(Debug)]
pub struct Tensor {
    pub live: wgpu::Buffer,
    pub pristine: wgpu::Buffer,
}

#[derive(Debug)]
pub struct Layer {
    pub keys: Tensor,
    pub values: Tensor,
}

/// The caches of one shape. Cases of this shape share them.
#[derive(Debug)]
pub struct Data {
    pub shape: KvShape,
    /// Tokens a row.
    pub seq_len: u32,
    pub norms: Norms,
    pub layers: Vec<Layer>,
    pub pages: Option<Pages>,
}

/// A paged cache lies as a contiguous one does, but for the order of a row's pages, which is shuffled.
#[derive(Debug)]
pub struct Pages {
    pub page_size: u32,
    pub table: wgpu::Buffer,
    /// For each page of the pool, which of its row's pages it is.
    pub inverse: wgpu::Buffer,
    pub ids: Vec<u32>,
}

impl Pages {
    fn new(gpu: &Gpu, shape: &KvShape, page_size: u32) -> Result<Self> {
        let a_row = shape.capacity / page_size;
        let mut ids: Vec<u32> = Vec::new();
        for row in 0..shape.rows_per_layer() {
            let mut own: Vec<u32> = (row * a_row..(row + 1) * a_row).collect();
            for i in (1..a_row).rev() {
                own.swap(i as usize, (mix(i ^ mix(row)) % (i + 1)) as usize);
            }
            ids.extend(own);
        }
        let mut inverse = vec![0; ids.len()];
        for (entry, &id) in (0..).zip(&ids) {
            inverse[id as usize] = entry % a_row;
        }
        let upload = |label, words: &[u32]| {
            let buffer = gpu.buffer(label, words.len() as u64 * 4)?;
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
            Ok::<_, String>(buffer)
        };
        let (table, inverse) = (upload("page table", &ids)?, upload("inverse page table", &inverse)?);
        Ok(Self { page_size, table, inverse, ids })
    }

    /// One row as a contiguous cache holds it: `words` are those of its part of the pool.
    pub fn in_order(&self, row: u32, capacity: u32, words: &[u32]) -> Vec<u32> {
        let a_row = (capacity / self.page_size) as usize;
        let page_words = words.len() / a_row;
        let first = row as usize * a_row;
        let page = |&id: &u32| &words[(id as usize - first) * page_words..][..page_words];
        self.ids[first..first + a_row].iter().flat_map(page).copied().collect()
    }
}

pub fn tensor_bytes(shape: &KvShape) -> u64 {
    u64::from(shape.rows_per_layer()) * u64::from(shape.capacity) * u64::from(shape.keys.row_bytes())
}

const fn mantissa_bits(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 11,
        Dtype::Bf16 => 8,
        Dtype::F8E4M3 => 4,
        Dtype::F8E5M2 => 3,
        _ => 24,
    }
}

/// Bytes of a block and of its scale, a byte of quants of one magnitude, and the bits by which it differs from that of the
/// other sign; 0 where rows are not quantised.
const fn blocks(spec: &TensorSpec) -> [u32; 4] {
    match spec.dtype {
        Dtype::Q8_0 => [34, 2, 0x40, 0x80],
        Dtype::Q4_0 => [18, 2, 0xcc, 0x88],
        Dtype::I8Scaled => [spec.row_bytes(), 4, 0x40, 0x80],
        _ => [0; 4],
    }
}

/// Workgroups of a grid-stride loop.
fn stride_groups(words: u64) -> u32 {
    u32::try_from(words.div_ceil(256 * 32)).unwrap_or(u32::MAX).clamp(1, 16384)
}

fn word(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| format!("{value} is more than a tensor of this tool can hold"))
}

impl Data {
    /// Of rows of so many tokens.
    pub fn new(gpu: &Gpu, (shape, seq_len): (KvShape, u32), page_size: Option<u32>, norms: Norms) -> Result<Self> {
        let source = concat!(include_str!("shaders/generate.wgsl"), include_str!("shaders/mix.wgsl"));
        let kernel = Kernel::new(gpu, source, "generate");
        let bytes = tensor_bytes(&shape);
        let tensor = |name: &str, live, seed: u32| {
            let pristine = gpu.buffer(&format!("pristine {name}"), bytes)?;
            generate(gpu, &kernel, &shape.keys, norms, &pristine, seed)?;
            Ok::<_, String>(Tensor { live, pristine })
        };
        // First the caches, side by side as a runtime has them: with copies between them a card looks up more addresses.
        let live: Vec<_> = (0..shape.num_layers)
            .map(|_| Ok([gpu.buffer("keys", bytes)?, gpu.buffer("values", bytes)?]))
            .collect::<Result<_>>()?;
        let layers = (0..)
            .zip(live)
            .map(|(l, [keys, values])| {
                Ok(Layer {
                    keys: tensor("keys", keys, seed_of(l, 0))?,
                    values: tensor("values", values, seed_of(l, 1))?,
                })
            })
            .collect::<Result<_>>()?;
        let pages = page_size.map(|size| Pages::new(gpu, &shape, size)).transpose()?;
        Ok(Self { shape, seq_len, norms, layers, pages })
    }

    /// Puts the unsorted data back.
    pub fn restore(&self, encoder: &mut wgpu::CommandEncoder) {
        for tensor in self.layers.iter().flat_map(|l| [&l.keys, &l.values]) {
            encoder.copy_buffer_to_buffer(&tensor.pristine, 0, &tensor.live, 0, tensor.live.size());
        }
    }
}

pub const fn seed_of(layer: u32, tensor: u32) -> u32 {
    0x6b6e_6f72 ^ (layer * 2 + tensor).wrapping_mul(0x9e37_79b9)
}

fn generate(
    gpu: &Gpu,
    kernel: &Kernel,
    spec: &TensorSpec,
    norms: Norms,
    buffer: &wgpu::Buffer,
    seed: u32,
) -> Result<()> {
    let [first_scale, num_scales, flatness, unit] = norms.params(spec.dtype);
    for (offset, size) in gpu.windows(buffer.size()) {
        let window = [word(offset / 4)?, word(size / 4)?];
        let words = [spec.row_bytes() / 4, seed, mantissa_bits(spec.dtype), first_scale, num_scales, flatness, unit];
        let words: Vec<u32> = window.into_iter().chain(words).chain(blocks(spec)).collect();
        let params = gpu.uniform(&words);
        let group = kernel.group(gpu, &[(0, params.as_entire_binding()), (1, part(buffer, offset, size))]);
        let mut encoder = gpu.encoder();
        kernel.dispatch(&mut encoder.begin_compute_pass(&Default::default()), &group, stride_groups(size / 4));
        gpu.queue.submit([encoder.finish()]);
    }
    Ok(())
}

/// What a repetition left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Of positions and kept rows, the same on every device.
    pub hash: u64,
    /// Kept slots whose token came from elsewhere.
    pub num_moved: u32,
    /// Slots below the rows' lengths.
    pub num_kept: u32,
}

/// Sums up the live tensors and the state on the device.
#[derive(Debug)]
pub struct Verifier {
    rows: Kernel,
    positions: Kernel,
    row_groups: Vec<(wgpu::BindGroup, u32)>,
    position_groups: Vec<(wgpu::BindGroup, u32)>,
    found: wgpu::Buffer,
}

impl Verifier {
    pub fn new(gpu: &Gpu, data: &Data, state: &CacheState) -> Result<Self> {
        let source = concat!(include_str!("shaders/verify.wgsl"), include_str!("shaders/mix.wgsl"));
        let rows = Kernel::new(gpu, source, "sum_rows");
        let positions = Kernel::new(gpu, source, "sum_positions");
        let found = gpu.buffer("found", 32)?;
        let shape = &data.shape;
        let none = gpu.buffer("no page table", 16)?;
        let inverse = data.pages.as_ref().map_or(&none, |p| &p.inverse);
        let groups = |kernel: &Kernel, buffer: &wgpu::Buffer, bytes: u64, token_words, row_base, salt| {
            // Positions lie by slot, whatever the pages.
            let page_size = data.pages.as_ref().filter(|_| token_words > 1).map_or(0, |p| p.page_size);
            gpu.windows(bytes)
                .map(|(offset, size)| {
                    let lengths = state.offsets().lengths + row_base;
                    let (first, num) = (word(offset / 4)?, word(size / 4)?);
                    let params = gpu.uniform(&[first, num, token_words, shape.capacity, lengths, salt, page_size]);
                    let bindings = [
                        (0, params.as_entire_binding()),
                        (1, part(buffer, offset, size)),
                        (2, state.meta().as_entire_binding()),
                        (3, found.as_entire_binding()),
                        (4, inverse.as_entire_binding()),
                    ];
                    Ok((kernel.group(gpu, &bindings), stride_groups(size / 4)))
                })
                .collect::<Result<Vec<_>>>()
        };
        let mut row_groups = Vec::new();
        for (l, layer) in (0..).zip(&data.layers) {
            for (t, tensor) in (0..).zip([&layer.keys, &layer.values]) {
                let token_words = shape.keys.row_bytes() / 4;
                let row_base = l * shape.rows_per_layer();
                row_groups.extend(groups(
                    &rows,
                    &tensor.live,
                    tensor.live.size(),
                    token_words,
                    row_base,
                    seed_of(l, t),
                )?);
            }
        }
        let slots = u64::from(shape.num_layers * shape.rows_per_layer()) * u64::from(shape.capacity);
        let position_groups = groups(&positions, state.positions(), slots * 4, 1, 0, POSITIONS_SALT)?;
        Ok(Self { rows, positions, row_groups, position_groups, found })
    }

    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.clear_buffer(&self.found, 0, None);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for (kernel, groups) in [(&self.rows, &self.row_groups), (&self.positions, &self.position_groups)] {
            for (group, num_workgroups) in groups {
                kernel.dispatch(&mut pass, group, *num_workgroups);
            }
        }
    }

    pub fn read(&self, gpu: &Gpu) -> Result<Found> {
        let f = gpu.read(&self.found)?;
        Ok(Found { hash: join(f[0] ^ f[2], f[1] ^ f[3]), num_moved: f[4], num_kept: f[5] })
    }
}

pub const POSITIONS_SALT: u32 = 0x706f_736e;

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

/// The host twin of the verifier's sums.
#[derive(Debug, Default)]
pub struct HostSums {
    rows: (u32, u32),
    positions: (u32, u32),
}

impl HostSums {
    fn sum(sums: (u32, u32), salt: u32, at: u32, word: u32) -> (u32, u32) {
        let h = mix(word ^ mix(at ^ salt));
        (sums.0.wrapping_add(h), sums.1.wrapping_add(mix(h ^ 0x9e37_79b9)))
    }

    /// Adds word `at` of a tensor, counted from the tensor's first.
    pub fn add_row_word(&mut self, salt: u32, at: u32, word: u32) {
        self.rows = Self::sum(self.rows, salt, at, word);
    }

    pub fn add_position(&mut self, at: u32, position: u32) {
        self.positions = Self::sum(self.positions, POSITIONS_SALT, at, position);
    }

    pub fn merge(&mut self, other: &Self) {
        let add = |a: (u32, u32), b: (u32, u32)| (a.0.wrapping_add(b.0), a.1.wrapping_add(b.1));
        self.rows = add(self.rows, other.rows);
        self.positions = add(self.positions, other.positions);
    }

    pub fn hash(&self) -> u64 {
        join(self.rows.0 ^ self.positions.0, self.rows.1 ^ self.positions.1)
    }
}

const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
