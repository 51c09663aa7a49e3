//! The moves of a compaction: their pipelines, and the dispatches that record them.

use crate::bound::{Bound, LayerWindow, PARAMS_STRIDE};
use crate::draft::{Builder, LayerDraft, word};
use crate::kernel::Checks;
use crate::module::{Access, Module};
use crate::plan::WORKGROUP;
use crate::policy::Order;
use crate::ranges::{RangeRule, Ranges, Walk, ranges};
use crate::shape::{KvShape, TensorSpec};

#[derive(Debug)]
pub(crate) enum Moves {
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
        /// Workgroups of all rows, as many of 1024 invocations.
        walkers: u32,
        /// Ranks that a workgroup of `walk` takes at a time.
        tile: u32,
        /// Ranks that a workgroup of `range` moves at a time.
        unit: u32,
    },
}

/// One dispatch of the moves.
pub(crate) struct MoveDispatch<'a> {
    pipeline: &'a wgpu::ComputePipeline,
    params: u32,
    workgroups: (u32, u32, u32),
}

impl MoveDispatch<'_> {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>, window: &LayerWindow) {
        let (x, y, z) = self.workgroups;
        pass.set_pipeline(self.pipeline);
        pass.set_bind_group(0, &window.compact_group, &[self.params]);
        window.choose_arrays(pass);
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Bound {
    pub(crate) fn record_moves(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        for layer in &self.banded {
            layer.record_moves(pass, max_len, self.plan.max_budget(max_len));
        }
        for window in &self.layers {
            for dispatch in self.move_dispatches(window, max_len) {
                dispatch.record(pass, window);
            }
        }
    }

    /// The dispatches that move a window's rows, each after the one before.
    fn move_dispatches<'a>(&self, window: &'a LayerWindow, max_len: u32) -> impl Iterator<Item = MoveDispatch<'a>> {
        let (rows, params) = (window.num_rows, window.compact_params);
        let (first, ranges, last) = match &window.moves {
            Moves::Fill { fill, unit } => {
                let workgroups = (self.plan.max_moved(max_len).div_ceil(*unit), 2, rows);
                (MoveDispatch { pipeline: fill, params, workgroups }, None, None)
            }
            Moves::Positional { walk, range, slices, walkers, tile, unit } => {
                let rule = RangeRule::of(self.plan.kernels.capabilities.serial);
                let max_budget = self.plan.max_budget(max_len);
                let ranges = ranges(Walk { max_len, max_budget, workgroups: *walkers, tile: *tile }, rule);
                let walk_at = |block: u32| MoveDispatch {
                    pipeline: walk,
                    params: params + PARAMS_STRIDE * block,
                    workgroups: (*slices, rows, 1),
                };
                let of_range = move |ix: u32, ranges: Ranges| MoveDispatch {
                    pipeline: range,
                    params: params + PARAMS_STRIDE * rule.range_block(ranges.walk_ix, ix),
                    workgroups: (ranges.len(ix).div_ceil(*unit), 2, rows),
                };
                let first = walk_at(ranges.map_or(0, |ranges| RangeRule::walk_block(ranges.walk_ix)));
                let last = ranges.map(|ranges| walk_at(rule.range_block(ranges.walk_ix, ranges.count)));
                let ranges = ranges.map(|ranges| (0..ranges.count).map(move |ix| of_range(ix, ranges)));
                (first, ranges, last)
            }
        };
        std::iter::once(first).chain(ranges.into_iter().flatten()).chain(last)
    }
}

impl Builder<'_> {
    /// Where the ranges of a window's rows begin. Each window has its own, since wgpu separates the uses of one by barriers.
    pub(crate) fn starts(&self, moves: &Moves, num_rows: u32, checks: &mut Checks) -> wgpu::Buffer {
        let rule = RangeRule::of(self.kernels().capabilities.serial);
        let num_rows = match moves {
            Moves::Positional { walkers, .. } if rule.may_follow(*walkers) => num_rows,
            _ => 1,
        };
        let descriptor = wgpu::BufferDescriptor {
            label: Some("keynorm.starts"),
            size: 4 * u64::from(RangeRule::STARTS) * u64::from(num_rows),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        };
        checks.guard(self.device, "keynorm.starts", || self.device.create_buffer(&descriptor))
    }

    /// Lanes that move a row of a tensor. On a CPU an invocation moves whole rows.
    fn move_lanes(&self, spec: &TensorSpec) -> u32 {
        if self.kernels().capabilities.serial { 1 } else { spec.move_lanes() }
    }

    /// The constants of the kernels that move rows, by column slices of at most so many chunks.
    pub(crate) fn moves_constants(&self, slice: u32) -> [(&'static str, u32); 6] {
        let (keys, values) = (&self.plan.shape.keys, &self.plan.shape.values);
        [
            ("KEY_CHUNKS", keys.chunks()),
            ("KEY_LANES", self.move_lanes(keys)),
            ("VALUE_CHUNKS", values.chunks()),
            ("VALUE_LANES", self.move_lanes(values)),
            ("KEY_SLICE", even_slice(keys.chunks(), slice)),
            ("VALUE_SLICE", even_slice(values.chunks(), slice)),
        ]
    }

    pub(crate) fn moves(&self, draft: &LayerDraft, checks: &mut Checks) -> Moves {
        let shape = &self.plan.shape;
        let serial = self.kernels().capabilities.serial;
        // Short rows have no work for a wide workgroup; on a CPU a column slice has none.
        let wide = match shape.capacity {
            _ if serial => MAX_SLICE,
            ..=1024 => WORKGROUP,
            _ => self.kernels().capabilities.row_workgroup,
        };
        let slice = if serial { MAX_SLICE } else { walk_slice(shape, draft.window.num_rows, wide) };
        let (keys, values) = (&shape.keys, &shape.values);
        let (key_lanes, value_lanes) = (self.move_lanes(keys), self.move_lanes(values));
        // Bound with keys that end within a chunk, values do not go by the keys' file.
        let is_joined = draft.values_access == Access::Joined;
        let tails = (keys.has_tail(), values.has_tail() || (is_joined && keys.has_tail()));
        let module = Module::Compact {
            keys_vec4: draft.keys_access == Access::Vec4,
            values_vec4: (draft.values_access != Access::Joined).then_some(draft.values_access == Access::Vec4),
            tails,
            tokens: draft.tokens,
        };
        let mut pipeline = |entry, workgroup: u32| {
            let mut constants = vec![("WG_SIZE", f64::from(workgroup))];
            constants.extend(self.moves_constants(slice).map(|(name, value)| (name, f64::from(value))));
            constants.extend(self.page_size());
            let words = [("KEY_WORDS", keys, tails.0), ("VALUE_WORDS", values, tails.1)].into_iter();
            constants.extend(words.filter(|w| w.2).map(|(name, spec, _)| (name, f64::from(spec.row_bytes() / 4))));
            self.kernels().pipeline_of(module, entry, word(draft.array.len() as u64), &constants, checks)
        };
        let unit = WORKGROUP / key_lanes.max(value_lanes) * 4;
        match self.plan.policy.order {
            Order::Fill => Moves::Fill { fill: pipeline("fill", WORKGROUP), unit },
            Order::Positional => {
                let slices = num_slices(shape, 1, slice);
                let widest = even_slice(keys.chunks(), slice).max(even_slice(values.chunks(), slice));
                Moves::Positional {
                    walk: pipeline("walk", wide),
                    range: pipeline("range", WORKGROUP),
                    slices,
                    walkers: slices.saturating_mul(draft.window.num_rows).saturating_mul(wide) / 1024,
                    tile: 8 * wide / widest,
                    unit,
                }
            }
        }
    }
}

/// Workgroups of a walk by slices of four chunks up to which slices of two are faster.
const FEW_WALKS: u32 = 32;

/// Widest part of a row that a workgroup walks, 16-byte chunks.
pub(crate) const MAX_SLICE: u32 = 16;

/// Widest row that a workgroup walks whole, 16-byte chunks, where others take more of them.
const MAX_WHOLE: u32 = 48;

/// Workgroups of 1024 that a card walks with at once. See `benches/record`.
const CARD: u32 = 132;

/// Column slices of a row of so many chunks, none wider than `most`: as wide as each other but for the last, and of whole
/// 32-byte sectors, which two workgroups would load twice.
pub(crate) fn even_slice(chunks: u32, most: u32) -> u32 {
    match chunks.div_ceil(most) {
        1 => chunks,
        slices => chunks.div_ceil(slices).next_multiple_of(2),
    }
}

/// Column slices of so many rows' keys and values.
pub(crate) fn num_slices(shape: &KvShape, rows: u32, slice: u32) -> u32 {
    rows.saturating_mul(shape.keys.chunks().div_ceil(slice) + shape.values.chunks().div_ceil(slice))
}

/// Widest column slices of rows that are selected by the workgroups that walk, 16-byte chunks: as wide as leaves enough
/// workgroups to fill the card. The narrowest cost more a byte and pay only where workgroups are few. See `benches/record`.
pub(crate) fn slice_chunks(shape: &KvShape, rows: u32, workgroup: u32) -> u32 {
    let wanted = 64 * 1024 / workgroup;
    let widest = shape.keys.chunks().max(shape.values.chunks());
    if widest < 2 * MAX_SLICE && num_slices(shape, rows, widest) >= wanted {
        return widest;
    }
    let chunks = rows.saturating_mul(shape.keys.chunks() + shape.values.chunks());
    let narrowest = if workgroup == 1024 && chunks > 4 * FEW_WALKS { 4 } else { 2 };
    let is_enough = |slice: &u32| chunks / slice >= wanted || num_slices(shape, rows, *slice) > wanted;
    [MAX_SLICE, 8, 4].into_iter().find(is_enough).unwrap_or(narrowest)
}

/// As [`slice_chunks`], of rows that are walked by nothing else: whole, where they are more than half of what the card takes
/// at once, or halves, where these take fewer than twice the rounds.
fn walk_slice(shape: &KvShape, rows: u32, workgroup: u32) -> u32 {
    let at_once = |wide: u32| wide * 1024 / workgroup;
    let widest = shape.keys.chunks().max(shape.values.chunks());
    let whole = num_slices(shape, rows, widest);
    if widest <= MAX_WHOLE && whole > at_once(64) {
        let rounds = |workgroups: u32| workgroups.div_ceil(at_once(CARD));
        let is_halved = widest > MAX_SLICE && rounds(whole.saturating_mul(2)) < 2 * rounds(whole);
        return if is_halved { widest.div_ceil(2).next_multiple_of(2) } else { widest };
    }
    if num_slices(shape, rows, MAX_SLICE) > at_once(64) {
        return MAX_SLICE;
    }
    slice_chunks(shape, rows, workgroup).min(MAX_SLICE / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Dtype;

    #[test]
    fn walks_fill_the_card() {
        let spec = |head_dim| TensorSpec { dtype: Dtype::F16, head_dim };
        let of = |rows, head_dim| {
            let shape = KvShape {
                num_layers: 1,
                batch_size: 1,
                num_kv_heads: rows,
                capacity: 32_768,
                keys: spec(head_dim),
                values: spec(head_dim),
            };
            (slice_chunks(&shape, rows, 1024), walk_slice(&shape, rows, 1024))
        };
        let expected = [
            (1, 128, 2),
            (8, 128, 4),
            (16, 128, 8),
            (32, 128, 8),
            (40, 128, 16),
            (64, 64, 8),
            (16, 256, 8),
            (64, 256, 32),
            (64, 512, 16),
            (48, 80, 10),
            (16, 96, 4),
            (24, 96, 8),
            (16, 160, 8),
            (24, 160, 16),
            (64, 160, 20),
            (96, 160, 10),
            (112, 160, 20),
            (96, 128, 16),
        ];
        for (rows, head_dim, slice) in expected {
            assert_eq!(of(rows, head_dim).1, slice, "{rows} rows of {head_dim}");
        }
        assert_eq!(of(32, 128).0, 16, "where rows are selected by the workgroups that walk");
    }
}
