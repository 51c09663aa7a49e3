//! Rust mirrors of the shaders' uniform structs. A test compares names, offsets and sizes with the WGSL.

use bytemuck::{Pod, Zeroable};

use crate::shape::KvShape;
use crate::state::StateOffsets;

/// Mirror of `StateLayout`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StateLayout {
    pub num_seen_base: u32,
    pub inactive_base: u32,
    pub lengths_base: u32,
    pub compacted_base: u32,
    pub positions_base: u32,
    pub capacity: u32,
    pub num_kv_heads: u32,
    pub rows_per_layer: u32,
    pub batch_size: u32,
    pub scored_base: u32,
    pub segments_base: u32,
    pub inactive_stride: u32,
    pub writable_base: u32,
    pub writable_unit: u32,
    pub pad0: u32,
    pub pad1: u32,
}

impl StateLayout {
    /// `first_position` is the word of the positions buffer where the binding begins.
    #[expect(clippy::cast_possible_truncation, reason = "bases are modulo 2^32 by design")]
    pub fn new(shape: &KvShape, first_position: u64) -> Self {
        let o = StateOffsets::of(shape);
        Self {
            num_seen_base: o.num_seen,
            inactive_base: o.inactive,
            lengths_base: o.lengths,
            compacted_base: o.compacted,
            positions_base: 0u32.wrapping_sub(first_position as u32),
            capacity: shape.capacity,
            num_kv_heads: shape.num_kv_heads,
            rows_per_layer: shape.rows_per_layer(),
            batch_size: shape.batch_size,
            scored_base: o.scored,
            segments_base: o.segments,
            inactive_stride: 0,
            writable_base: o.first_writable,
            writable_unit: 1,
            pad0: 0,
            pad1: 0,
        }
    }

    /// Of a paged cache, whose tables decide which sequences a compression skips, layer by layer.
    pub fn paged(shape: &KvShape, first_position: u64, page_size: u32) -> Self {
        let skipped = StateOffsets::of(shape).skipped;
        Self {
            inactive_base: skipped,
            inactive_stride: shape.batch_size,
            writable_unit: page_size,
            ..Self::new(shape, first_position)
        }
    }
}

/// Mirror of `Params` in key_norm.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct KeyNormParams {
    pub state: StateLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub layer: u32,
    pub order_stride: u32,
    pub keys: TensorLayout,
    pub first_sequence: u32,
    pub direction: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub sinks: u32,
    pub recent: u32,
    pub histogram_stride: u32,
    pub digit_shift: u32,
    pub digit_window: u32,
    pub share_low: u32,
    pub share_high: u32,
    pub first_slot: u32,
    pub end_slot: u32,
    pub table_base: u32,
    pub table_stride: u32,
    pub zero: u32,
}

/// Mirror of `Params` in shared/score_rows.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct ScoreParams {
    pub state: StateLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub layer: u32,
    pub order_stride: u32,
    pub keys: TensorLayout,
    pub first_sequence: u32,
    pub complement: u32,
    pub sums_stride: u32,
    pub sums_offset: u32,
    pub sinks: u32,
    pub recent: u32,
    pub share_low: u32,
    pub share_high: u32,
    pub histogram_stride: u32,
    pub digit_shift: u32,
    pub digit_window: u32,
    pub table_base: u32,
    pub table_stride: u32,
    pub zero: u32,
    pub pad1: u32,
    pub pad2: u32,
}

/// Mirror of `Params` in shared/top_k_params.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct TopKParams {
    pub state: StateLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub order_stride: u32,
    pub lists_stride: u32,
    pub staged_offset: u32,
    pub aside_offset: u32,
    pub histogram_stride: u32,
    pub order: u32,
    pub sorted_stride: u32,
    pub merge_size: u32,
    pub merge_stride: u32,
    pub ends_offset: u32,
    pub first_info: u32,
    pub first_layer: u32,
    pub tile_counts_base: u32,
    pub digit_shift: u32,
    pub digit_window: u32,
    pub keys_held: u32,
    pub pool_pass: u32,
    pub pool_min_tokens: u32,
}

/// Mirror of `RowRule` in shared/row_rule.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RowRule {
    pub budget_mode: u32,
    pub ratio_low: u32,
    pub ratio_high: u32,
    pub tokens: u32,
    pub key_limit: u32,
    pub min_len: u32,
    pub pooled: u32,
    pub pad0: u32,
}

/// Mirror of `Params` in order.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct OrderParams {
    pub state: StateLayout,
    pub first_row: u32,
    pub first_layer: u32,
    pub order_stride: u32,
    pub direction: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub sinks: u32,
    pub recent: u32,
    pub keep_copies: u32,
    pub share_low: u32,
    pub share_high: u32,
    pub histogram_stride: u32,
    pub digit_shift: u32,
    pub digit_window: u32,
    pub pad0: u32,
    pub pad1: u32,
}

/// Mirror of `TensorLayout` in shared/address_*.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct TensorLayout {
    pub batch_stride: u32,
    pub head_stride: u32,
    pub token_stride: u32,
    pub layer_stride: u32,
    pub base: u32,
    pub pad0: u32,
    pub pad1: u32,
    pub pad2: u32,
}

/// Mirror of `Params` in shared/row_params.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RowParams {
    pub state: StateLayout,
    pub keys: TensorLayout,
    pub values: TensorLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub layer: u32,
    pub first_sequence: u32,
    pub first_rule: u32,
    pub order_stride: u32,
    pub keys_held: u32,
    pub digit_shift: u32,
    pub digit_window: u32,
    pub direction: u32,
    pub seed_low: u32,
    pub seed_high: u32,
    pub sinks: u32,
    pub recent: u32,
    pub share_low: u32,
    pub share_high: u32,
    pub pad0: u32,
    pub pad1: u32,
}

/// Mirror of `Params` in compact.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CompactParams {
    pub keys: TensorLayout,
    pub values: TensorLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub first_sequence: u32,
    pub num_kv_heads: u32,
    pub lists_stride: u32,
    pub first_info: u32,
    pub walk_len: u32,
    pub range_ix: u32,
    pub table_base: u32,
    pub table_stride: u32,
    pub rows_per_layer: u32,
    pub pad0: u32,
}

/// Mirror of `Params` in compact_bands.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BandParams {
    pub tensor: TensorLayout,
    pub store_shift: u32,
    pub num_rows: u32,
    pub first_row: u32,
    pub first_sequence: u32,
    pub num_kv_heads: u32,
    pub lists_stride: u32,
    pub first_info: u32,
    pub order: u32,
    pub first_source: u32,
    pub end_source: u32,
    pub first_slot: u32,
    pub end_slot: u32,
}

/// Mirror of `Params` in pages.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PageParams {
    pub state: StateLayout,
    pub first_layer: u32,
    pub num_layers: u32,
    pub num_pages: u32,
    pub first_page: u32,
    pub table_base: u32,
    pub table_stride: u32,
    pub page_size: u32,
    pub freed_stride: u32,
    pub skipped_base: u32,
    pub pad0: u32,
    pub pad1: u32,
    pub pad2: u32,
}

/// Mirror of `Params` in rotate.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RotateParams {
    pub state: StateLayout,
    pub num_rows: u32,
    pub first_row: u32,
    pub layer: u32,
    pub batch_stride: u32,
    pub head_stride: u32,
    pub token_stride: u32,
    pub base: u32,
    pub first_sequence: u32,
    pub units: u32,
    pub pair_offset: u32,
    pub unit_words: u32,
    pub pad0: u32,
}

/// Mirror of `Params` in renumber.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct RenumberParams {
    pub state: StateLayout,
    pub first_layer: u32,
    pub num_layers: u32,
    pub pad0: u32,
    pub pad1: u32,
}

/// Mirror of `Params` in append.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AppendParams {
    pub state: StateLayout,
    pub num_layers: u32,
    pub counts_base: u32,
    pub pad0: u32,
    pub pad1: u32,
}
