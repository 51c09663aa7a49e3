//! The parameters of every dispatch of a binding, drafted from checked views. No GPU objects but the parameter buffer.

use crate::bound::{MAX_RANGES, PARAMS_STRIDE, POOL_PASSES, WALK_LEN, sort_steps};
use crate::criterion::Score;
use crate::kernel::{Access, Checks};
use crate::params::{AppendParams, CompactParams, KeyNormParams, OrderParams, StateLayout, TensorLayout, TopKParams};
use crate::plan::{PlanInner, ROW_TOKENS};
use crate::policy::{Direction, Order};
use crate::score::{digit_window, params_of_score};
use crate::shape::Lattice;
use crate::state::{CacheState, NUM_APPEND_SLOTS, append_slot_words};
use crate::windows::{BoundRange, Window, rows_range, scratch_windows};
use crate::workspace::{ROW_INFO_WORDS, Workspace};

/// Row infos in 256 bytes.
pub(crate) const INFOS_A_SLOT: u64 = 256 / (ROW_INFO_WORDS as u64 * 4);

/// Parameter blocks, each at a multiple of [`PARAMS_STRIDE`].
#[derive(Default)]
pub(crate) struct ParamsBlock(pub Vec<u8>);

impl ParamsBlock {
    pub(crate) fn push<T: bytemuck::Pod>(&mut self, params: &T) -> u32 {
        let offset = self.0.len();
        self.0.extend_from_slice(bytemuck::bytes_of(params));
        self.0.resize(offset + PARAMS_STRIDE as usize, 0);
        u32::try_from(offset).unwrap_or(u32::MAX)
    }

    pub(crate) fn into_buffer(
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
pub(crate) struct CheckedLayer {
    /// Index among the compressed layers.
    pub compressed: u32,
    /// Index in the shape.
    pub layer: u32,
    pub keys: Lattice,
    pub values: Lattice,
    pub scores: Option<Lattice>,
    pub windows: Vec<Window>,
    pub joined: bool,
}

#[derive(Clone)]
pub(crate) struct LayerDraft {
    pub layer: u32,
    pub window: Window,
    pub first_scratch_row: u64,
    pub first_position: u64,
    pub keys_access: Access,
    pub values_access: Access,
    /// Offset of the parameters of the score; those of the values' norms follow, where they have a score.
    pub score_params: u32,
    /// Of the caller's scores.
    pub scores: BoundRange,
    pub compact_params: u32,
}

pub(crate) struct SelectDraft {
    pub first_row: u64,
    pub num_rows: u32,
    pub first_position: u64,
    pub position_words: u64,
    /// Parameters of the selection, after them those of sorted rows, of the sort's steps and of the pool's passes.
    pub params_offset: u32,
    pub pool_params: u32,
    pub order_params: u32,
}

/// What bind needs at hand.
pub(crate) struct Builder<'a> {
    pub plan: &'a PlanInner,
    pub device: &'a wgpu::Device,
    pub state: &'a CacheState,
    pub workspace: &'a Workspace,
}

impl Builder<'_> {
    pub(crate) fn draft_layer(&self, layer: &CheckedLayer, params: &mut ParamsBlock) -> Vec<LayerDraft> {
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
            let (direction, seed) = direction_words(policy.direction);
            let (digit_shift, digit_base) = digit_window(policy);
            let share = policy.share_bits();
            let scores = layer.scores.as_ref().map_or(window.keys, |s| rows_range(s, window, self.limits()));
            let norm = KeyNormParams {
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
                share_low: word(share),
                share_high: word(share >> 32),
                pad0: 0,
            };
            let score_params = match policy.score_in_use() {
                Score::KeyNorm => params.push(&norm),
                Score::External(_) => {
                    let tensor = layer
                        .scores
                        .as_ref()
                        .map_or(keys, |s| tensor_layout(s, window.first_row, scores, Access::Word));
                    params.push(&params_of_score(&norm, tensor, self.plan))
                }
                _ => params.push(&params_of_score(&norm, keys, self.plan)),
            };
            if policy.score_in_use() == Score::ValueKeyRatio {
                params.push(&params_of_score(&norm, values, self.plan));
            }
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
                scores,
                compact_params,
            }
        };
        layer.windows.iter().map(draft).collect()
    }

    pub(crate) fn draft_selects(&self, params: &mut ParamsBlock) -> Vec<SelectDraft> {
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
            for (first, num_rows) in scratch_windows(run_rows, self.select_rows()) {
                let state_row = u64::from(self.plan.layers[run_start]) * rows_per_layer + first;
                let first_position = state_row * u64::from(shape.capacity) / 64 * 64;
                let last_position = (state_row + u64::from(num_rows)) * u64::from(shape.capacity);
                let first_row = run_start as u64 * rows_per_layer + first;
                let first_layer = self.plan.layers[run_start].wrapping_sub(word(run_start as u64));
                let p = self.select_params(first_row, num_rows, first_position, first_layer);
                drafts.push(SelectDraft {
                    first_row,
                    num_rows,
                    first_position,
                    position_words: last_position - first_position,
                    params_offset: self.push_select_params(p, params),
                    pool_params: self.push_pool_params(p, params),
                    order_params: self.push_order_params(&p, params),
                });
            }
            run_start = end;
        }
        drafts
    }

    /// Most rows of a window of the select stage: whole pools where there are any.
    fn select_rows(&self) -> u32 {
        let max_rows = self.limits().max_rows;
        let heads = self.plan.shape.num_kv_heads;
        if self.plan.policy.pool.is_some() { max_rows / heads * heads } else { max_rows }
    }

    fn select_params(&self, first_row: u64, num_rows: u32, first_position: u64, first_layer: u32) -> TopKParams {
        let scratch = &self.plan.scratch;
        let (digit_shift, digit_base) = digit_window(&self.plan.policy);
        TopKParams {
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
            pool_pass: 0,
            pool_min_tokens: self.plan.policy.pool.map_or(0, |pool| pool.min_tokens),
        }
    }

    fn push_select_params(&self, mut p: TopKParams, params: &mut ParamsBlock) -> u32 {
        let offset = params.push(&p);
        if p.sorted_stride > 0 {
            params.push(&TopKParams { from_sorted: 1, ..p });
            for (size, distance) in sort_steps(self.kernels().capabilities.sort_len, p.sorted_stride) {
                p.merge_size = size;
                p.merge_stride = distance;
                params.push(&p);
            }
        }
        offset
    }

    /// One block for each pass.
    fn push_pool_params(&self, p: TopKParams, params: &mut ParamsBlock) -> u32 {
        let passes = if self.plan.policy.pool.is_some() { POOL_PASSES } else { 0 };
        let offsets: Vec<u32> = (0..passes).map(|pool_pass| params.push(&TopKParams { pool_pass, ..p })).collect();
        offsets.first().copied().unwrap_or(0)
    }

    fn push_order_params(&self, p: &TopKParams, params: &mut ParamsBlock) -> u32 {
        let policy = &self.plan.policy;
        if !policy.cached_norms {
            return 0;
        }
        let (direction, seed) = match (policy.score_in_use(), policy.direction) {
            // The state keeps 1 - cosine, which is high where the score is low.
            (Score::KeyDiff, Direction::Lowest) => direction_words(Direction::Highest),
            (Score::KeyDiff, _) => direction_words(Direction::Lowest),
            (_, direction) => direction_words(direction),
        };
        params.push(&OrderParams {
            state: p.state,
            first_row: p.first_row,
            first_layer: p.first_layer,
            order_stride: p.order_stride,
            direction,
            seed_low: word(seed),
            seed_high: word(seed >> 32),
            sinks: policy.sinks,
            recent: policy.recent,
            keep_copies: u32::from(self.plan.scratch.copies_stride > 0),
            share_low: word(policy.share_bits()),
            share_high: word(policy.share_bits() >> 32),
            pad0: 0,
        })
    }

    pub(crate) fn push_append_params(&self, params: &mut ParamsBlock) -> u32 {
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
}

const fn direction_words(direction: Direction) -> (u32, u64) {
    match direction {
        Direction::Lowest => (0, 0),
        Direction::Highest => (1, 0),
        Direction::Random { seed } => (2, seed),
    }
}

fn access_of(vec4: bool) -> Access {
    if vec4 { Access::Vec4 } else { Access::Word }
}

/// The low word: bases and strides are modulo 2^32.
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 by design")]
pub(crate) const fn word(value: u64) -> u32 {
    value as u32
}

pub(crate) fn tensor_layout(lattice: &Lattice, first_row: u32, range: BoundRange, access: Access) -> TensorLayout {
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
