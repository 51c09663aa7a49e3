//! A plan bound to buffers, and the recording of its stages.

use std::sync::Arc;

use crate::error::{ArgumentError, BuildError};
use crate::kernel::{Access, Checks, Kernels, LayoutKind, Module};
use crate::params::{AppendParams, CompactParams, KeyNormParams, LayerEntry, StateLayout, TensorLayout, TopKParams};
use crate::plan::{Plan, PlanInner, ROW_TOKENS, SELECT_TILE, WORKGROUP};
use crate::policy::{Direction, Order, Selector};
use crate::shape::{KvShape, Lattice, Strides, TensorSpec, range_lattice};
use crate::state::{CacheState, NUM_APPEND_SLOTS, append_slot_words, check_slot};
use crate::windows::{BoundRange, Window, WindowLimits, layer_windows, scratch_windows};
use crate::workspace::{ROW_INFO_WORDS, Workspace};

/// Keys or values of one layer in the caller's buffer.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Buffer with usage `STORAGE`. It is declared `read_write`; it may be shared with other tensors and strangers.
    pub buffer: &'a wgpu::Buffer,
    /// First byte of (sequence 0, head 0, token 0): a multiple of 4. Multiples of 16 are fastest.
    pub offset_bytes: u64,
    /// Distances between neighbours, elements.
    pub strides: Strides,
}

/// Keys and values of one layer. Slots at or beyond a row's length are never read, whatever they hold.
#[derive(Debug, Clone, Copy)]
pub struct KvView<'a> {
    /// Keys.
    pub keys: TensorView<'a>,
    /// Values.
    pub values: TensorView<'a>,
}

impl<'a> KvView<'a> {
    /// Two buffers of [batch, head, token, dim] (HND), densely packed from byte 0.
    #[must_use]
    pub fn hnd(shape: &KvShape, keys: &'a wgpu::Buffer, values: &'a wgpu::Buffer) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::hnd(shape.num_kv_heads, shape.capacity, spec.head_dim),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values) }
    }

    /// Two buffers of [batch, token, head, dim] (NHD), densely packed from byte 0.
    #[must_use]
    pub fn nhd(shape: &KvShape, keys: &'a wgpu::Buffer, values: &'a wgpu::Buffer) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::nhd(shape.num_kv_heads, shape.capacity, spec.head_dim),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values) }
    }
}

/// Stages to record. Each may be recorded alone, in this order, with the same workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stages(u32);

impl Stages {
    /// Keys → order keys.
    pub const SCORE: Self = Self(1);
    /// Order keys → threshold and lists of slots of each row.
    pub const SELECT: Self = Self(2);
    /// Lists → rows moved, positions and lengths updated.
    pub const COMPACT: Self = Self(4);
    /// The whole compression.
    pub const ALL: Self = Self(7);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A plan bound to the buffers of its layers. `Send + Sync`; keeps its buffers alive.
#[derive(Debug)]
pub struct Bound {
    plan: Arc<PlanInner>,
    layers: Vec<LayerWindow>,
    selects: Vec<SelectWindow>,
    state: CacheState,
    append_group: wgpu::BindGroup,
    /// Parameters of append slot 0; those of the other slots follow.
    append_params_offset: u32,
}

#[derive(Debug)]
struct LayerWindow {
    num_rows: u32,
    score: wgpu::ComputePipeline,
    score_fused: wgpu::ComputePipeline,
    score_group: wgpu::BindGroup,
    compact_group: wgpu::BindGroup,
    /// Offset of the parameters of `fill`, or of the walk that takes all; those of [`WALK_LEN`] and its ranges follow.
    compact_params: u32,
    moves: Moves,
}

#[derive(Debug)]
enum Moves {
    Fill {
        fill: wgpu::ComputePipeline,
        /// Rows that a workgroup moves.
        unit: u32,
    },
    Positional {
        walk: wgpu::ComputePipeline,
        range: wgpu::ComputePipeline,
        /// Workgroups a row.
        slices: u32,
        /// Ranks that a workgroup of `range` moves at a time.
        unit: u32,
    },
}

#[derive(Debug)]
struct SelectWindow {
    num_rows: u32,
    group: wgpu::BindGroup,
    state_group: wgpu::BindGroup,
    bitonic_group: Option<wgpu::BindGroup>,
    /// Offset of the window's parameters; those of sorted rows and of the sort's steps follow.
    params_offset: u32,
}

/// How the select stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    RadixRow,
    RadixLong,
    BitonicRow,
    BitonicLong,
}

/// Bytes between parameter blocks: WebGPU's largest uniform offset alignment.
const PARAMS_STRIDE: u32 = 256;
/// Row infos in 256 bytes.
const INFOS_A_SLOT: u64 = 256 / (ROW_INFO_WORDS as u64 * 4);

impl Bound {
    pub(crate) fn new(
        plan: &Plan,
        device: &wgpu::Device,
        views: &[KvView<'_>],
        state: &CacheState,
        workspace: &Workspace,
        checks: &mut Checks,
    ) -> Result<Self, BuildError> {
        let inner = &plan.inner;
        let builder = Builder { plan: inner, device, state, workspace };
        let layers = builder.check(views)?;
        let mut params = ParamsBlock::default();
        let drafts: Vec<_> = layers.iter().flat_map(|layer| builder.draft_layer(layer, &mut params)).collect();
        let select_drafts = builder.draft_selects(&mut params);
        let append_params_offset = builder.push_append_params(&mut params);
        let params = params.into_buffer(device, "keynorm.params", wgpu::BufferUsages::UNIFORM, checks);
        let table = builder.layer_table(checks);
        let layers = drafts.iter().map(|d| builder.layer_window(d, &params, views, checks)).collect();
        let selects = select_drafts.iter().map(|d| builder.select_window(d, &params, &table, checks)).collect();
        let append_group = builder.append_group(&params, checks);
        Ok(Self { plan: Arc::clone(inner), layers, selects, state: state.clone(), append_group, append_params_offset })
    }

    /// The state that was bound.
    #[must_use]
    pub const fn state(&self) -> &CacheState {
        &self.state
    }

    /// Records the whole compression of every bound layer into the caller's pass. `max_len` (tokens) bounds the lengths
    /// of the rows at execution and sizes the grids; the lengths themselves are read from the cache state on the GPU.
    ///
    /// Neither submits, polls, maps nor creates anything, and leaves the pass with another pipeline and bind group 0.
    ///
    /// # Errors
    /// `max_len` above the capacity; nothing is recorded then.
    ///
    /// # Determinism
    /// The same input gives the same bits in every run, selector and subgroup size.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) -> Result<(), ArgumentError> {
        self.record_stages(pass, max_len, Stages::ALL)
    }

    /// Records some of the stages; see [`Bound::record`].
    ///
    /// # Errors
    /// As [`Bound::record`].
    pub fn record_stages(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        max_len: u32,
        stages: Stages,
    ) -> Result<(), ArgumentError> {
        let capacity = self.plan.shape.capacity;
        if max_len > capacity {
            return Err(ArgumentError::TooLarge { argument: "max_len", got: max_len.into(), limit: capacity.into() });
        }
        if max_len == 0 || self.layers.is_empty() {
            return Ok(());
        }
        let path = self.path(max_len);
        let fused = path == Path::RadixLong && stages.has(Stages::SCORE) && stages.has(Stages::SELECT);
        if stages.has(Stages::SCORE) {
            self.record_score(pass, max_len, fused);
        }
        if stages.has(Stages::SELECT) {
            for window in &self.selects {
                self.record_select(pass, window, max_len, path, fused);
            }
        }
        if stages.has(Stages::COMPACT) {
            self.record_compact(pass, max_len);
        }
        Ok(())
    }

    /// Records the counting of appended tokens: adds the counts of `slot` (see [`CacheState::set_append_counts`]) to the
    /// lengths and to the tokens seen of every layer, so that lengths need never be read back.
    ///
    /// # Errors
    /// A slot that does not exist; nothing is recorded then.
    pub fn record_append(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32) -> Result<(), ArgumentError> {
        check_slot(slot)?;
        let shape = &self.plan.shape;
        let rows = shape.num_layers * shape.rows_per_layer();
        pass.set_pipeline(&self.plan.select.append);
        pass.set_bind_group(0, &self.append_group, &[self.append_params_offset + PARAMS_STRIDE * slot]);
        pass.dispatch_workgroups(rows.div_ceil(WORKGROUP), 1, 1);
        Ok(())
    }

    fn path(&self, max_len: u32) -> Path {
        let sort_len = self.plan.kernels.capabilities.sort_len;
        match self.plan.policy.selector {
            Selector::Bitonic if max_len <= sort_len => Path::BitonicRow,
            Selector::Bitonic => Path::BitonicLong,
            Selector::Auto | Selector::Radix => {
                if max_len <= ROW_TOKENS * self.plan.kernels.capabilities.row_workgroup {
                    Path::RadixRow
                } else {
                    Path::RadixLong
                }
            }
        }
    }

    fn record_score(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32, fused: bool) {
        let tiles = self.plan.tiles;
        for window in &self.layers {
            let (pipeline, tile) =
                if fused { (&window.score_fused, tiles.fused) } else { (&window.score, tiles.plain) };
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &window.score_group, &[]);
            pass.dispatch_workgroups(max_len.div_ceil(tile), window.num_rows, 1);
        }
    }

    fn record_select(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        window: &SelectWindow,
        max_len: u32,
        path: Path,
        fused: bool,
    ) {
        let select = &self.plan.select;
        let tiles = max_len.div_ceil(SELECT_TILE);
        let rows = window.num_rows;
        match path {
            Path::RadixRow => {
                pass.set_bind_group(0, &window.group, &[window.params_offset]);
                let row =
                    usize::from(max_len > ROW_TOKENS * WORKGROUP) + usize::from(max_len > 2 * ROW_TOKENS * WORKGROUP);
                pass.set_pipeline(&select.radix_rows[row]);
                pass.dispatch_workgroups(1, rows, 1);
            }
            Path::RadixLong => {
                pass.set_bind_group(0, &window.group, &[window.params_offset]);
                if !fused {
                    pass.set_pipeline(&select.count_digits);
                    pass.dispatch_workgroups(tiles, rows, 1);
                }
                for pipeline in [&select.collect, &select.emit] {
                    pass.set_pipeline(pipeline);
                    pass.dispatch_workgroups(tiles, rows, 1);
                }
            }
            Path::BitonicRow | Path::BitonicLong => self.record_bitonic(pass, window, max_len, path),
        }
    }

    fn record_bitonic(&self, pass: &mut wgpu::ComputePass<'_>, window: &SelectWindow, max_len: u32, path: Path) {
        let select = &self.plan.select;
        let (Some(bitonic), Some(group)) = (&select.bitonic, &window.bitonic_group) else {
            return; // the plan builds both for every selector that takes this path
        };
        let rows = window.num_rows;
        pass.set_bind_group(0, group, &[window.params_offset]);
        if path == Path::BitonicRow {
            pass.set_pipeline(&bitonic.row);
            pass.dispatch_workgroups(1, rows, 1);
            return;
        }
        let sort_len = self.plan.kernels.capabilities.sort_len;
        let total = max_len.next_power_of_two().max(sort_len);
        pass.set_pipeline(&bitonic.tiles);
        pass.dispatch_workgroups(total / sort_len, rows, 1);
        let mut offset = window.params_offset + 2 * PARAMS_STRIDE;
        for (_, distance) in sort_steps(sort_len, total) {
            pass.set_bind_group(0, group, &[offset]);
            if distance >= sort_len {
                pass.set_pipeline(&bitonic.step);
                pass.dispatch_workgroups(total / 2 / WORKGROUP, rows, 1);
            } else {
                pass.set_pipeline(&bitonic.merge);
                pass.dispatch_workgroups(total / sort_len, rows, 1);
            }
            offset += PARAMS_STRIDE;
        }
        pass.set_bind_group(0, group, &[window.params_offset]);
        pass.set_pipeline(&bitonic.pick);
        pass.dispatch_workgroups(1, rows, 1);
        let sorted_params = window.params_offset + PARAMS_STRIDE;
        pass.set_bind_group(0, &window.group, &[sorted_params]);
        for pipeline in [&select.collect, &select.emit] {
            pass.set_pipeline(pipeline);
            pass.dispatch_workgroups(max_len.div_ceil(SELECT_TILE), rows, 1);
        }
    }

    /// The state's update and the moves share no buffer that either writes, so they overlap. Positional moves are several
    /// dependent dispatches: the update goes beside the first.
    fn record_compact(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        if self.plan.policy.order == Order::Positional {
            self.record_finish(pass, self.plan.max_budget(max_len));
            self.record_moves(pass, max_len);
        } else {
            self.record_moves(pass, max_len);
            self.record_finish(pass, self.plan.max_moved(max_len));
        }
    }

    fn record_finish(&self, pass: &mut wgpu::ComputePass<'_>, max_finished: u32) {
        pass.set_pipeline(&self.plan.select.finish);
        for window in &self.selects {
            pass.set_bind_group(0, &window.state_group, &[window.params_offset]);
            pass.dispatch_workgroups(max_finished.div_ceil(WORKGROUP).max(1), window.num_rows, 1);
        }
    }

    fn record_moves(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        let max_moved = self.plan.max_moved(max_len);
        for window in &self.layers {
            match &window.moves {
                Moves::Fill { fill, unit } => {
                    pass.set_pipeline(fill);
                    pass.set_bind_group(0, &window.compact_group, &[window.compact_params]);
                    pass.dispatch_workgroups(max_moved.div_ceil(*unit), window.num_rows, 2);
                }
                Moves::Positional { walk, range, slices, unit } => {
                    let ranges = ranges(max_len, self.plan.max_budget(max_len), slices * window.num_rows);
                    let mut params = window.compact_params + if ranges.is_some() { PARAMS_STRIDE } else { 0 };
                    pass.set_pipeline(walk);
                    pass.set_bind_group(0, &window.compact_group, &[params]);
                    pass.dispatch_workgroups(*slices, window.num_rows, 1);
                    let Some(ranges) = ranges else { continue };
                    pass.set_pipeline(range);
                    for ix in 0..ranges.count {
                        params += PARAMS_STRIDE;
                        pass.set_bind_group(0, &window.compact_group, &[params]);
                        pass.dispatch_workgroups(ranges.len(ix).div_ceil(*unit), window.num_rows, 2);
                    }
                    pass.set_pipeline(walk);
                    pass.set_bind_group(0, &window.compact_group, &[params + PARAMS_STRIDE]);
                    pass.dispatch_workgroups(*slices, window.num_rows, 1);
                }
            }
        }
    }
}

/// Ranks that the first walk takes where ranges follow.
const WALK_LEN: u32 = 8192;
/// Most ranges of a row.
const MAX_RANGES: u32 = 8;
/// Workgroups from which on a walk alone fills the card.
const FULL_WALK: u32 = 128;

/// The ranges by which a positional compaction goes on after its first walk.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ranges {
    count: u32,
    /// Expected ratio of a range's end to its start: rows are thinned by the keep ratio.
    growth: f64,
}

impl Ranges {
    /// Expected ranks of a range; its dispatch goes round for more.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating estimate of a grid")]
    fn len(self, ix: u32) -> u32 {
        let start = f64::from(WALK_LEN) * self.growth.powi(ix.cast_signed());
        (start * (self.growth - 1.0)).clamp(1.0, f64::from(crate::MAX_CAPACITY)) as u32
    }
}

/// Ranges pay where a walk has few workgroups, rows are long and few ranges reach the budget.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
fn ranges(max_len: u32, max_budget: u32, walk_workgroups: u32) -> Option<Ranges> {
    if walk_workgroups >= FULL_WALK || max_budget <= WALK_LEN || max_budget >= max_len {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    // A little more than expected: the last walk should find nothing.
    let count = (f64::from(max_budget) / f64::from(WALK_LEN) * 1.02).ln() / growth.ln();
    let count = count.ceil().max(1.0) as u32;
    (count <= MAX_RANGES).then_some(Ranges { count, growth })
}

/// The (size, distance) of each dispatch that merges tiles of `sort_len` into rows of `total`, in order. The last
/// dispatch of a size runs all distances below `sort_len` in workgroup memory.
fn sort_steps(sort_len: u32, total: u32) -> impl Iterator<Item = (u32, u32)> {
    let sizes = (sort_len.trailing_zeros() + 1)..=total.trailing_zeros();
    sizes.flat_map(move |log_size| {
        let distances = (sort_len.trailing_zeros() - 1..log_size).rev();
        distances.map(move |log_distance| (1 << log_size, 1 << log_distance))
    })
}

/// Parameter blocks, each at a multiple of [`PARAMS_STRIDE`].
#[derive(Default)]
struct ParamsBlock(Vec<u8>);

impl ParamsBlock {
    fn push<T: bytemuck::Pod>(&mut self, params: &T) -> u32 {
        let offset = self.0.len();
        self.0.extend_from_slice(bytemuck::bytes_of(params));
        self.0.resize(offset + PARAMS_STRIDE as usize, 0);
        u32::try_from(offset).unwrap_or(u32::MAX)
    }

    fn into_buffer(
        self,
        device: &wgpu::Device,
        label: &'static str,
        usage: wgpu::BufferUsages,
        checks: &mut Checks,
    ) -> wgpu::Buffer {
        let size = (self.0.len() as u64).max(u64::from(PARAMS_STRIDE));
        checks.guard(device, label, || {
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true };
            let buffer = device.create_buffer(&descriptor);
            // An error here means that the buffer itself was refused, which the guard reports.
            if let Ok(mut mapped) = buffer.get_mapped_range_mut(..self.0.len() as u64) {
                mapped.copy_from_slice(&self.0);
            }
            buffer.unmap();
            buffer
        })
    }
}

/// One compressed layer whose views have been checked.
struct CheckedLayer {
    /// Index among the compressed layers.
    compressed: u32,
    /// Index in the shape.
    layer: u32,
    keys: Lattice,
    values: Lattice,
    windows: Vec<Window>,
    joined: bool,
}

struct LayerDraft {
    layer: u32,
    window: Window,
    first_scratch_row: u64,
    first_position: u64,
    keys_access: Access,
    values_access: Access,
    score_params: u32,
    compact_params: u32,
}

struct SelectDraft {
    first_row: u64,
    num_rows: u32,
    first_position: u64,
    position_words: u64,
    params_offset: u32,
}

/// What bind needs at hand.
struct Builder<'a> {
    plan: &'a PlanInner,
    device: &'a wgpu::Device,
    state: &'a CacheState,
    workspace: &'a Workspace,
}

impl Builder<'_> {
    fn kernels(&self) -> &Kernels {
        &self.plan.kernels
    }

    fn limits(&self) -> WindowLimits {
        let c = &self.kernels().capabilities;
        WindowLimits {
            max_binding_bytes: c.max_binding_bytes,
            offset_alignment: c.offset_alignment,
            max_rows: c.max_workgroups.min(self.plan.scratch.max_rows(c.max_binding_bytes)),
        }
    }

    fn check(&self, views: &[KvView<'_>]) -> Result<Vec<CheckedLayer>, BuildError> {
        let shape = &self.plan.shape;
        if self.kernels().device != *self.device {
            return Err(ArgumentError::WrongDevice { argument: "device" }.into());
        }
        crate::state::check_count("views", views.len(), shape.num_layers as usize)?;
        if self.state.shape != *shape {
            return Err(ArgumentError::WrongPlan { argument: "state" }.into());
        }
        if self.workspace.layout != self.plan.scratch {
            return Err(ArgumentError::WrongPlan { argument: "workspace" }.into());
        }
        let mut layers = Vec::new();
        let mut placed: Vec<(&wgpu::Buffer, Lattice)> = Vec::new();
        for (buffer, argument) in [
            (self.state.meta(), "state.meta"),
            (self.state.positions(), "state.positions"),
            (self.state.status(), "state.status"),
            (self.workspace.order_keys(), "workspace.order_keys"),
        ] {
            placed.push((buffer, range_lattice(argument, 0, buffer.size())));
        }
        for (compressed, &layer) in self.plan.layers.iter().enumerate() {
            let view = &views[layer as usize];
            let keys = check_tensor("keys", shape, &shape.keys, &view.keys)?;
            let values = check_tensor("values", shape, &shape.values, &view.values)?;
            for (buffer, lattice) in [(view.keys.buffer, keys), (view.values.buffer, values)] {
                for (other_buffer, other) in &placed {
                    if *other_buffer == buffer && lattice.overlaps(other) {
                        let (first, second) = (other.argument, lattice.argument);
                        return Err(ArgumentError::Overlap { first, second }.into());
                    }
                }
                placed.push((buffer, lattice));
            }
            let same_buffer = view.keys.buffer == view.values.buffer;
            let (windows, joined) = layer_windows(&keys, &values, same_buffer, self.limits())?;
            let compressed = u32::try_from(compressed).unwrap_or(u32::MAX);
            layers.push(CheckedLayer { compressed, layer, keys, values, windows, joined });
        }
        Ok(layers)
    }

    fn draft_layer(&self, layer: &CheckedLayer, params: &mut ParamsBlock) -> Vec<LayerDraft> {
        let shape = &self.plan.shape;
        let scratch = &self.plan.scratch;
        let (keys_access, values_access) = match (layer.joined, layer.keys.is_vec4(), layer.values.is_vec4()) {
            (true, true, true) => (Access::Vec4, Access::Joined),
            (true, ..) => (Access::Word, Access::Joined),
            (false, k, v) => (access_of(k), access_of(v)),
        };
        let values_unit = if layer.joined { keys_access } else { values_access };
        let draft = |window: &Window| {
            let first_sequence = window.first_row / shape.num_kv_heads;
            let keys = tensor_layout(&layer.keys, window.first_row, window.keys, keys_access);
            let values = tensor_layout(&layer.values, window.first_row, window.values, values_unit);
            let state_row = u64::from(layer.layer) * u64::from(shape.rows_per_layer()) + u64::from(window.first_row);
            let first_position = state_row * u64::from(shape.capacity) / 64 * 64;
            let first_scratch_row =
                u64::from(layer.compressed) * u64::from(shape.rows_per_layer()) + u64::from(window.first_row);
            let policy = &self.plan.policy;
            let (direction, seed) = match policy.direction {
                Direction::Lowest => (0, 0),
                Direction::Highest => (1, 0),
                Direction::Random { seed } => (2, seed),
            };
            let (digit_shift, digit_base) = digit_window(policy.direction);
            let score_params = params.push(&KeyNormParams {
                state: StateLayout::new(shape, first_position),
                num_rows: window.num_rows,
                first_row: window.first_row,
                layer: layer.layer,
                order_stride: scratch.order_stride,
                batch_stride: keys.batch_stride,
                head_stride: keys.head_stride,
                token_stride: keys.token_stride,
                base: keys.base,
                first_sequence,
                direction,
                seed_low: word(seed),
                seed_high: word(seed >> 32),
                sinks: policy.sinks,
                recent: policy.recent,
                histogram_stride: scratch.histogram_stride,
                digit_shift,
                digit_base,
                pad0: 0,
                pad1: 0,
                pad2: 0,
            });
            let compact = CompactParams {
                keys,
                values,
                num_rows: window.num_rows,
                first_row: window.first_row,
                first_sequence,
                num_kv_heads: shape.num_kv_heads,
                lists_stride: scratch.lists_stride,
                first_info: word(first_scratch_row % INFOS_A_SLOT),
                walk_len: u32::MAX,
                range_ix: u32::MAX,
            };
            let compact_params = params.push(&compact);
            if policy.order == Order::Positional {
                params.push(&CompactParams { walk_len: WALK_LEN, ..compact });
                for range_ix in 0..=MAX_RANGES {
                    params.push(&CompactParams { walk_len: WALK_LEN, range_ix, ..compact });
                }
            }
            LayerDraft {
                layer: layer.layer,
                window: *window,
                first_scratch_row,
                first_position,
                keys_access,
                values_access,
                score_params,
                compact_params,
            }
        };
        layer.windows.iter().map(draft).collect()
    }

    fn draft_selects(&self, params: &mut ParamsBlock) -> Vec<SelectDraft> {
        let shape = &self.plan.shape;
        let rows_per_layer = u64::from(shape.rows_per_layer());
        // Positions of a window span the skipped layers between its rows, so a window keeps to layers without a gap.
        let mut drafts = Vec::new();
        let mut run_start = 0;
        for end in 1..=self.plan.layers.len() {
            let broken = self.plan.layers.get(end).is_none_or(|&l| l != self.plan.layers[end - 1] + 1);
            if !broken {
                continue;
            }
            let run_rows = (end - run_start) as u64 * rows_per_layer;
            for (first, num_rows) in scratch_windows(run_rows, self.limits().max_rows) {
                let state_row = u64::from(self.plan.layers[run_start]) * rows_per_layer + first;
                let first_position = state_row * u64::from(shape.capacity) / 64 * 64;
                let last_position = (state_row + u64::from(num_rows)) * u64::from(shape.capacity);
                let first_row = run_start as u64 * rows_per_layer + first;
                let first_layer = self.plan.layers[run_start].wrapping_sub(word(run_start as u64));
                drafts.push(SelectDraft {
                    first_row,
                    num_rows,
                    first_position,
                    position_words: last_position - first_position,
                    params_offset: self.push_select_params(first_row, num_rows, first_position, first_layer, params),
                });
            }
            run_start = end;
        }
        drafts
    }

    fn push_select_params(
        &self,
        first_row: u64,
        num_rows: u32,
        first_position: u64,
        first_layer: u32,
        params: &mut ParamsBlock,
    ) -> u32 {
        let scratch = &self.plan.scratch;
        let (digit_shift, digit_base) = digit_window(self.plan.policy.direction);
        let mut p = TopKParams {
            state: StateLayout::new(&self.plan.shape, first_position),
            num_rows,
            first_row: word(first_row),
            order_stride: scratch.order_stride,
            lists_stride: scratch.lists_stride,
            staged_offset: scratch.staged_offset,
            aside_offset: scratch.aside_offset,
            histogram_stride: scratch.histogram_stride,
            order: u32::from(self.plan.policy.order == Order::Positional),
            sorted_stride: scratch.sorted_stride,
            merge_size: 0,
            merge_stride: 0,
            from_sorted: 0,
            first_info: word(first_row % INFOS_A_SLOT),
            first_layer,
            tile_counts_base: scratch.tile_counts_base,
            digit_shift,
            digit_base,
            keys_held: ROW_TOKENS,
            pad1: 0,
            pad2: 0,
        };
        let offset = params.push(&p);
        if scratch.sorted_stride > 0 {
            params.push(&TopKParams { from_sorted: 1, ..p });
            for (size, distance) in sort_steps(self.kernels().capabilities.sort_len, scratch.sorted_stride) {
                p.merge_size = size;
                p.merge_stride = distance;
                params.push(&p);
            }
        }
        offset
    }

    /// The plan's layers and budgets, as the select stage reads them.
    fn layer_table(&self, checks: &mut Checks) -> wgpu::Buffer {
        let rule = &self.plan.rule;
        let entries: Vec<LayerEntry> = self
            .plan
            .layers
            .iter()
            .map(|_| LayerEntry {
                budget_mode: rule.mode,
                ratio_low: word(rule.ratio),
                ratio_high: word(rule.ratio >> 32),
                tokens: rule.tokens,
                pad0: 0,
                pad1: 0,
                pad2: 0,
                pad3: 0,
            })
            .collect();
        let bytes = bytemuck::cast_slice(&entries).to_vec();
        ParamsBlock(bytes).into_buffer(self.device, "keynorm.layers", wgpu::BufferUsages::STORAGE, checks)
    }

    fn layer_window(
        &self,
        draft: &LayerDraft,
        params: &wgpu::Buffer,
        views: &[KvView<'_>],
        checks: &mut Checks,
    ) -> LayerWindow {
        let view = &views[draft.layer as usize];
        let w = &draft.window;
        let scratch = &self.plan.scratch;
        let rows = |buffer, stride| row_binding(buffer, draft.first_scratch_row, w.num_rows, stride);
        let position_words = u64::from(w.num_rows) * u64::from(self.plan.shape.capacity) + 64;
        let keys = range_binding(view.keys.buffer, w.keys);
        let score_group = self.group(
            LayoutKind::KeyNorm,
            &[
                params_binding::<KeyNormParams>(params, draft.score_params),
                keys.clone(),
                self.state.meta().as_entire_binding(),
                words_binding(self.state.positions(), draft.first_position, position_words),
                rows(&self.workspace.order_keys, scratch.order_stride),
                rows(&self.workspace.histogram, scratch.histogram_stride),
                self.state.status().as_entire_binding(),
            ],
            checks,
        );
        let compact_params = params_binding::<CompactParams>(params, 0);
        let lists = rows(&self.workspace.lists, scratch.lists_stride);
        let infos = info_binding(&self.workspace.row_infos, draft.first_scratch_row, w.num_rows);
        let compact_group = if draft.values_access == Access::Joined {
            self.group(LayoutKind::CompactJoined, &[compact_params, keys, lists, infos], checks)
        } else {
            let values = range_binding(view.values.buffer, w.values);
            self.group(LayoutKind::Compact, &[compact_params, keys, values, lists, infos], checks)
        };
        LayerWindow {
            num_rows: w.num_rows,
            score: self.score_pipeline(draft.keys_access, false, checks),
            score_fused: self.score_pipeline(draft.keys_access, true, checks),
            score_group,
            compact_group,
            compact_params: draft.compact_params,
            moves: self.moves(draft, checks),
        }
    }

    fn score_pipeline(&self, access: Access, fused: bool, checks: &mut Checks) -> wgpu::ComputePipeline {
        let keys = &self.plan.shape.keys;
        let tiles = self.plan.tiles;
        let lanes = keys.lanes();
        let module = Module::KeyNorm {
            dtype: keys.dtype,
            vec4: access == Access::Vec4,
            reduction: self.kernels().capabilities.reduction(lanes),
        };
        let constants = [
            ("WG_SIZE", f64::from(WORKGROUP)),
            ("LANES", f64::from(lanes)),
            ("CHUNKS", f64::from(keys.chunks())),
            ("TILE", f64::from(if fused { tiles.fused } else { tiles.plain })),
            ("HISTOGRAM", f64::from(u8::from(fused))),
        ];
        self.kernels().pipeline(module, "score", &constants, checks)
    }

    fn moves(&self, draft: &LayerDraft, checks: &mut Checks) -> Moves {
        let shape = &self.plan.shape;
        // Short rows have no work for a wide workgroup.
        let wide = if shape.capacity > 1024 { self.kernels().capabilities.row_workgroup } else { WORKGROUP };
        let slice = slice_chunks(shape, wide);
        let (keys, values) = (&shape.keys, &shape.values);
        // On a CPU an invocation moves whole rows.
        let lanes = |spec: &TensorSpec| if self.kernels().capabilities.is_cpu { 1 } else { spec.lanes() };
        let (key_lanes, value_lanes) = (lanes(keys), lanes(values));
        let module = Module::Compact {
            keys_vec4: draft.keys_access == Access::Vec4,
            values_vec4: (draft.values_access != Access::Joined).then_some(draft.values_access == Access::Vec4),
        };
        let mut pipeline = |entry, workgroup: u32| {
            let constants = [
                ("WG_SIZE", f64::from(workgroup)),
                ("KEY_CHUNKS", f64::from(keys.chunks())),
                ("KEY_LANES", f64::from(key_lanes)),
                ("VALUE_CHUNKS", f64::from(values.chunks())),
                ("VALUE_LANES", f64::from(value_lanes)),
                ("SLICE_CHUNKS", f64::from(slice)),
            ];
            self.kernels().pipeline(module, entry, &constants, checks)
        };
        let unit = WORKGROUP / key_lanes.max(value_lanes) * 4;
        match self.plan.policy.order {
            Order::Fill => Moves::Fill { fill: pipeline("fill", WORKGROUP), unit },
            Order::Positional => Moves::Positional {
                walk: pipeline("walk", wide),
                range: pipeline("range", WORKGROUP),
                slices: keys.chunks().div_ceil(slice) + values.chunks().div_ceil(slice),
                unit,
            },
        }
    }

    fn select_window(
        &self,
        draft: &SelectDraft,
        params: &wgpu::Buffer,
        table: &wgpu::Buffer,
        checks: &mut Checks,
    ) -> SelectWindow {
        let scratch = &self.plan.scratch;
        let rows = |buffer, stride| row_binding(buffer, draft.first_row, draft.num_rows, stride);
        let mut bindings = vec![
            params_binding::<TopKParams>(params, 0),
            rows(&self.workspace.order_keys, scratch.order_stride),
            self.state.meta().as_entire_binding(),
            words_binding(self.state.positions(), draft.first_position, draft.position_words),
            rows(&self.workspace.lists, scratch.lists_stride),
            info_binding(&self.workspace.row_infos, draft.first_row, draft.num_rows),
            rows(&self.workspace.histogram, scratch.histogram_stride),
            table.as_entire_binding(),
        ];
        let group = self.group(LayoutKind::TopK, &bindings, checks);
        let state_bindings = [&bindings[0], &bindings[2], &bindings[3], &bindings[4], &bindings[5]];
        let mut state_bindings: Vec<_> = state_bindings.into_iter().cloned().collect();
        state_bindings.push(self.state.status().as_entire_binding());
        let state_group = self.group(LayoutKind::State, &state_bindings, checks);
        let bitonic_group = self.plan.select.bitonic.is_some().then(|| {
            bindings.push(if scratch.sorted_stride > 0 {
                rows(&self.workspace.sorted, scratch.sorted_stride)
            } else {
                self.workspace.sorted.as_entire_binding()
            });
            self.group(LayoutKind::Bitonic, &bindings, checks)
        });
        SelectWindow { num_rows: draft.num_rows, group, state_group, bitonic_group, params_offset: draft.params_offset }
    }

    fn push_append_params(&self, params: &mut ParamsBlock) -> u32 {
        let shape = &self.plan.shape;
        let block = |slot| AppendParams {
            state: StateLayout::new(shape, 0),
            num_layers: shape.num_layers,
            counts_base: append_slot_words(shape) * slot,
            pad0: 0,
            pad1: 0,
        };
        let first = params.push(&block(0));
        for slot in 1..NUM_APPEND_SLOTS {
            params.push(&block(slot));
        }
        first
    }

    fn append_group(&self, params: &wgpu::Buffer, checks: &mut Checks) -> wgpu::BindGroup {
        self.group(
            LayoutKind::Append,
            &[
                params_binding::<AppendParams>(params, 0),
                self.state.meta().as_entire_binding(),
                self.state.append_counts().as_entire_binding(),
            ],
            checks,
        )
    }

    fn group(&self, kind: LayoutKind, resources: &[wgpu::BindingResource<'_>], checks: &mut Checks) -> wgpu::BindGroup {
        let entries: Vec<_> = kind
            .bindings()
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource: resource.clone() })
            .collect();
        checks.guard(self.device, "keynorm bind group", || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("keynorm"),
                layout: self.kernels().bind_group_layout(kind),
                entries: &entries,
            })
        })
    }
}

/// Column slices of the walk, 16-byte chunks: as wide as leaves enough workgroups to fill the card.
fn slice_chunks(shape: &KvShape, workgroup: u32) -> u32 {
    let chunks = shape.rows_per_layer() * (shape.keys.chunks() + shape.values.chunks());
    let wanted = 64 * 1024 / workgroup;
    [16, 8, 4].into_iter().find(|slice| chunks / slice >= wanted).unwrap_or(if workgroup == 1024 { 4 } else { 2 })
}

/// (shift, base) of the window of first digits: 128 bins an octave over squared norms from 2^-1 to 2^15, or their
/// complements; random keys are uniform over 31 bits.
const fn digit_window(direction: Direction) -> (u32, u32) {
    const LOWEST: u32 = (127 - 1) << 7;
    const INFINITY: u32 = 255 << 7;
    match direction {
        Direction::Lowest => (16, LOWEST),
        Direction::Highest => (16, INFINITY - LOWEST - 2048),
        Direction::Random { .. } => (20, 0),
    }
}

fn access_of(vec4: bool) -> Access {
    if vec4 { Access::Vec4 } else { Access::Word }
}

/// The low word: bases and strides are modulo 2^32.
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 by design")]
const fn word(value: u64) -> u32 {
    value as u32
}

fn tensor_layout(lattice: &Lattice, first_row: u32, range: BoundRange, access: Access) -> TensorLayout {
    let unit = access.unit_bytes();
    let head = u64::from(first_row % lattice.num_kv_heads);
    // Of head 0, which may lie before the window: the shader adds the head's stride again, modulo 2^32.
    let base = (lattice.row_start(first_row) - range.start) / unit;
    TensorLayout {
        batch_stride: word(lattice.batch_stride / unit),
        head_stride: word(lattice.head_stride / unit),
        token_stride: word(lattice.token_stride / unit),
        base: word(base).wrapping_sub(word(head * (lattice.head_stride / unit))),
    }
}

fn check_tensor(
    argument: &'static str,
    shape: &KvShape,
    spec: &TensorSpec,
    view: &TensorView<'_>,
) -> Result<Lattice, ArgumentError> {
    let lattice = Lattice::new(argument, shape, spec, view.offset_bytes, &view.strides)?;
    if !view.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(ArgumentError::MissingUsage { argument, missing: "STORAGE".to_owned() });
    }
    let (end, buffer_bytes) = (lattice.end(), view.buffer.size());
    if end > buffer_bytes {
        return Err(ArgumentError::OutsideBuffer { argument, end, buffer_bytes });
    }
    Ok(lattice)
}

fn params_binding<T>(buffer: &wgpu::Buffer, offset: u32) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer,
        offset: offset.into(),
        size: wgpu::BufferSize::new(size_of::<T>() as u64),
    })
}

fn range_binding(buffer: &wgpu::Buffer, range: BoundRange) -> wgpu::BindingResource<'_> {
    let size = wgpu::BufferSize::new(range.size);
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: range.start, size })
}

fn words_binding(buffer: &wgpu::Buffer, first: u64, count: u64) -> wgpu::BindingResource<'_> {
    let start = first * 4;
    range_binding(buffer, BoundRange { start, size: (count * 4).min(buffer.size() - start) })
}

/// Rows of a scratch array, whose stride is a multiple of 64 words; the whole dummy where the array is not used.
fn row_binding(buffer: &wgpu::Buffer, first_row: u64, num_rows: u32, stride: u32) -> wgpu::BindingResource<'_> {
    if stride == 0 {
        return buffer.as_entire_binding();
    }
    words_binding(buffer, first_row * u64::from(stride), u64::from(num_rows) * u64::from(stride))
}

/// Row infos from an aligned one on; `first_info` of the parameters is the distance.
fn info_binding(buffer: &wgpu::Buffer, first_row: u64, num_rows: u32) -> wgpu::BindingResource<'_> {
    let skipped = first_row % INFOS_A_SLOT;
    let words = u64::from(ROW_INFO_WORDS);
    words_binding(buffer, (first_row - skipped) * words, (skipped + u64::from(num_rows)) * words)
}
