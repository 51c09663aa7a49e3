//! The parameters of every dispatch of a binding, drafted from checked views. No GPU objects but the parameter buffer.

use crate::bitonic::sort_steps;
use crate::bound::POOL_PASSES;
use crate::criterion::Score;
use crate::first_digit::digit_window;
use crate::lattice::Lattice;
use crate::layers::{ArrayLayer, LayerRun};
use crate::module::{Access, Tokens};
use crate::pages::PageShape;
use crate::params::{AppendParams, CompactParams, KeyNormParams, OrderParams, StateLayout, TensorLayout, TopKParams};
use crate::params_block::ParamsBlock;
use crate::plan::{PlanInner, ROW_TOKENS};
use crate::policy::{Direction, Order, Policy};
use crate::ranges::RangeRule;
use crate::score::params_of_score;
use crate::state::{CacheState, NUM_APPEND_SLOTS, append_slot_words};
use crate::windows::{BoundRange, LayerWindows, Window, rows_range, scratch_windows};
use crate::workspace::{ROW_INFO_WORDS, Workspace};

/// Row infos in 256 bytes.
pub(crate) const INFOS_A_SLOT: u64 = 256 / (ROW_INFO_WORDS as u64 * 4);

/// One compressed layer whose views have been checked.
pub(crate) struct CheckedLayer {
    /// Index among the compressed layers.
    pub compressed: u32,
    /// Index in the shape.
    pub layer: u32,
    pub keys: Lattice,
    pub values: Lattice,
    pub scores: Option<Lattice>,
    pub windows: LayerWindows,
    /// Of a paged cache.
    pub table: Option<Lattice>,
}

/// Neighbouring rows of a layer, or of layers from this one on, and where they lie in scratch and state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowRange {
    pub layer: u32,
    pub first_row: u32,
    pub num_rows: u32,
    pub first_scratch_row: u64,
    pub first_position: u64,
}

/// What of its rows a dispatch of the score reads.
pub(crate) struct ScoredSlots {
    pub keys: TensorLayout,
    pub slots: std::ops::Range<u32>,
    pub table_base: u32,
    pub table_stride: u32,
}

#[derive(Clone)]
pub(crate) struct LayerDraft {
    pub rows: RowRange,
    pub window: Window,
    pub tokens: Tokens,
    /// Where layers are bound as arrays.
    pub array: Vec<ArrayLayer>,
    pub table: Option<BoundRange>,
    pub keys_access: Access,
    pub values_access: Access,
    /// Offset of the parameters of the score; those of the values' norms follow, where they have a score.
    pub score_params: u32,
    /// Of the caller's scores.
    pub scores: BoundRange,
    pub compact_params: u32,
    /// Where workgroup memory can select from whole rows.
    pub row_params: Option<u32>,
}

#[derive(Clone)]
pub(crate) struct SelectDraft {
    pub first_scratch_row: u64,
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
    pub pages: Option<PageShape>,
}

impl Builder<'_> {
    /// The drafts of layers of whole rows; none where they are bound by bands.
    pub(crate) fn draft_layers(&self, run: &LayerRun<'_>, params: &mut ParamsBlock) -> Vec<LayerDraft> {
        let (shape, layer) = (&self.plan.shape, &run.layers[0]);
        let LayerWindows::Rows { windows, joined } = &run.windows else { return Vec::new() };
        let (keys_access, values_access) = match (joined, layer.keys.is_vec4(), layer.values.is_vec4()) {
            (true, true, true) => (Access::Vec4, Access::Joined),
            (true, ..) => (Access::Word, Access::Joined),
            (false, k, v) => (access_of(k), access_of(v)),
        };
        let values_unit = if *joined { keys_access } else { values_access };
        let draft = |window: &Window| {
            let rows = self.row_range(layer, window.first_row, window.num_rows);
            // Rows of a paged cache are found by the table, from page 0 on.
            let first_row = if self.pages.is_some() { 0 } else { window.first_row };
            let layout = |lattice: &Lattice, stride: u64, range, access: Access| TensorLayout {
                layer_stride: word(stride / access.unit_bytes()),
                ..tensor_layout(lattice, first_row, range, access)
            };
            let keys = layout(&layer.keys, run.strides[0], window.keys, keys_access);
            let values = layout(&layer.values, run.strides[1], window.values, values_unit);
            let (table_base, table_stride) = self.table_words(layer);
            let compact = CompactParams {
                keys,
                values,
                num_rows: window.num_rows,
                first_row: window.first_row,
                first_sequence: first_row / shape.num_kv_heads,
                num_kv_heads: shape.num_kv_heads,
                lists_stride: self.plan.scratch.lists_stride,
                first_info: word(rows.first_scratch_row % INFOS_A_SLOT),
                walk_len: u32::MAX,
                range_ix: u32::MAX,
                table_base,
                table_stride,
                rows_per_layer: shape.rows_per_layer(),
                pad0: 0,
            };
            let scores = layer.scores.as_ref().map_or(window.keys, |s| rows_range(s, window.rows(), self.limits()));
            let given = layer.scores.as_ref().map(|s| tensor_layout(s, first_row, scores, Access::Word));
            let place = ScoredSlots { keys, slots: 0..u32::MAX, table_base, table_stride };
            let norm = self.norm_params(&rows, place);
            let policy = &self.plan.policy;
            let mut push = |tensor| params.push(&params_of_score(&norm, tensor, self.plan));
            let score_params = match policy.score_in_use() {
                Score::KeyNorm => params.push(&norm),
                Score::External(_) => push(given.unwrap_or(keys)),
                Score::ValueKeyRatio => {
                    let first = push(keys);
                    push(values);
                    first
                }
                _ => push(keys),
            };
            let rule = RangeRule::of(self.kernels().capabilities.serial);
            // No ranges follow the walk of a row that the shortest first walk takes whole.
            let shortest = rule.walk_lens.iter().copied().fold(u32::MAX, u32::min);
            let has_ranges = self.plan.policy.order == Order::Positional && self.plan.shape.capacity > shortest;
            let mut blocks = rule.blocks().map(|(walk_len, range_ix)| CompactParams { walk_len, range_ix, ..compact });
            let compact_params = params.push(&blocks.next().unwrap_or(compact));
            blocks.filter(|_| has_ranges).for_each(|block| {
                params.push(&block);
            });
            let table = layer.table.map(|t| BoundRange::aligned((t.offset, t.end()), self.limits()));
            let window = *window;
            let tensors = [(keys, keys_access), (values, values_access)];
            let row = self.row_params((layer.compressed, &rows), tensors);
            let row_params = row.map(|row| params.push(&row));
            LayerDraft {
                rows,
                window,
                tokens: run.tokens,
                array: run.array(),
                table,
                keys_access,
                values_access,
                score_params,
                scores,
                compact_params,
                row_params,
            }
        };
        windows.iter().map(draft).collect()
    }

    pub(crate) fn row_range(&self, layer: &CheckedLayer, first_row: u32, num_rows: u32) -> RowRange {
        let rows_per_layer = u64::from(self.plan.shape.rows_per_layer());
        let row_of = |layer: u32| u64::from(layer) * rows_per_layer + u64::from(first_row);
        RowRange {
            layer: layer.layer,
            first_row,
            num_rows,
            first_scratch_row: row_of(layer.compressed),
            first_position: row_of(layer.layer) * u64::from(self.plan.shape.capacity) / 64 * 64,
        }
    }

    /// Parameters of the norm of rows.
    pub(crate) fn norm_params(&self, rows: &RowRange, place: ScoredSlots) -> KeyNormParams {
        let (shape, scratch, policy) = (&self.plan.shape, &self.plan.scratch, &self.plan.policy);
        let (direction, seed) = direction_words(policy.direction);
        let (digit_shift, digit_window) = digit_window(policy);
        let share = policy.share_bits();
        KeyNormParams {
            state: self.state_layout(rows.first_position),
            num_rows: rows.num_rows,
            first_row: rows.first_row,
            layer: rows.layer,
            order_stride: scratch.order_stride,
            keys: place.keys,
            first_sequence: if self.pages.is_some() { 0 } else { rows.first_row / shape.num_kv_heads },
            direction,
            seed_low: word(seed),
            seed_high: word(seed >> 32),
            sinks: policy.sinks,
            recent: policy.recent,
            histogram_stride: scratch.histogram_stride,
            digit_shift,
            digit_window,
            share_low: word(share),
            share_high: word(share >> 32),
            first_slot: place.slots.start,
            end_slot: place.slots.end,
            table_base: place.table_base,
            table_stride: place.table_stride,
            zero: 0,
        }
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
                    first_scratch_row: first_row,
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
        let (digit_shift, digit_window) = digit_window(&self.plan.policy);
        TopKParams {
            state: self.state_layout(first_position),
            num_rows,
            first_row: word(first_row),
            order_stride: scratch.order_stride,
            lists_stride: scratch.lists_stride,
            staged_offset: scratch.order_stride,
            aside_offset: scratch.aside_offset,
            histogram_stride: scratch.histogram_stride,
            order: u32::from(self.plan.policy.order == Order::Positional),
            sorted_stride: scratch.sorted_stride,
            merge_size: 0,
            merge_stride: 0,
            ends_offset: scratch.ends_offset,
            first_info: word(first_row % INFOS_A_SLOT),
            first_layer,
            tile_counts_base: scratch.tile_counts_base,
            digit_shift,
            digit_window,
            keys_held: ROW_TOKENS,
            pool_pass: 0,
            pool_min_tokens: self.plan.policy.pool.map_or(0, |pool| pool.min_tokens),
        }
    }

    fn push_select_params(&self, mut p: TopKParams, params: &mut ParamsBlock) -> u32 {
        let offset = params.push(&p);
        if p.sorted_stride > 0 {
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
        let (direction, seed) = direction_of(policy);
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
            histogram_stride: p.histogram_stride,
            digit_shift: p.digit_shift,
            digit_window: p.digit_window,
            pad0: 0,
            pad1: 0,
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

pub(crate) const fn direction_words(direction: Direction) -> (u32, u64) {
    match direction {
        Direction::Lowest => (0, 0),
        Direction::Highest => (1, 0),
        Direction::Random { seed } => (2, seed),
    }
}

/// Of what scores are made of: keys' norms, or what the state keeps.
pub(crate) fn direction_of(policy: &Policy) -> (u32, u64) {
    match (policy.score_in_use(), policy.direction) {
        // The state keeps 1 - cosine, which is high where the score is low.
        (Score::KeyDiff, Direction::Lowest) => direction_words(Direction::Highest),
        (Score::KeyDiff, Direction::Highest) => direction_words(Direction::Lowest),
        (_, direction) => direction_words(direction),
    }
}

pub(crate) fn access_of(vec4: bool) -> Access {
    if vec4 { Access::Vec4 } else { Access::Word }
}

/// The low word: bases and strides are modulo 2^32.
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 by design")]
pub(crate) const fn word(value: u64) -> u32 {
    value as u32
}

/// Of one layer, strides and base in units of the access. The base may lie before the range, modulo 2^32.
pub(crate) fn tensor_layout(lattice: &Lattice, first_row: u32, range: BoundRange, access: Access) -> TensorLayout {
    let unit = access.unit_bytes();
    let head = u64::from(first_row % lattice.num_kv_heads);
    // Of head 0, which may lie before the window: the shader adds the head's stride again, modulo 2^32.
    let base = word(lattice.row_start(first_row) / unit).wrapping_sub(word(range.start / unit));
    TensorLayout {
        batch_stride: word(lattice.batch_stride / unit),
        head_stride: word(lattice.head_stride / unit),
        token_stride: word(lattice.token_stride / unit),
        layer_stride: 0,
        base: base.wrapping_sub(word(head * (lattice.head_stride / unit))),
        pad0: 0,
        pad1: 0,
        pad2: 0,
    }
}
