//! The moves of a compaction: their pipelines, and the dispatches that record them.

use crate::bound::{Bound, LayerWindow, PARAMS_STRIDE};
use crate::draft::{Builder, LayerDraft, word};
use crate::kernel::Checks;
use crate::module::{Access, Module};
use crate::plan::WORKGROUP;
use crate::policy::Order;
use crate::ranges::{RangeRule, Ranges, Walk, ranges};
use crate::shape::TensorSpec;

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
            layer.record_moves(pass, max_len);
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

    /// How rows of a tensor are moved, by how it is reached.
    pub(crate) fn moved(&self, spec: &TensorSpec, access: Access) -> MovedRow {
        MovedRow::new(spec, access == Access::Vec4, self.kernels().capabilities.serial)
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
        // Bound with the keys, values are reached as they are.
        let is_joined = draft.values_access == Access::Joined;
        let values_access = if is_joined { draft.keys_access } else { draft.values_access };
        let keys = self.moved(&shape.keys, draft.keys_access);
        let values = self.moved(&shape.values, values_access);
        let chunks = [keys.chunks, values.chunks];
        let slice = if serial { MAX_SLICE } else { walk_slice(chunks, draft.window.num_rows, wide) };
        let slice = slice.max(keys.sector).max(values.sector);
        let module = Module::Compact {
            keys_vec4: keys.words.is_none(),
            values_vec4: (!is_joined).then_some(values.words.is_none()),
            tokens: draft.tokens,
        };
        let slices = num_slices(chunks, 1, slice);
        let walkers = walkers(slices, draft.window.num_rows, wide);
        let paced = self.plan.policy.order == Order::Positional && is_paced(slice, walkers);
        let mut pipeline = |entry, workgroup: u32| {
            let mut constants = vec![("WG_SIZE", f64::from(workgroup))];
            constants.push(("PACED", f64::from(u32::from(paced))));
            constants.extend(moves_constants([keys, values], slice).map(|(name, value)| (name, f64::from(value))));
            constants.extend(self.page_size());
            self.kernels().pipeline_of(module, entry, word(draft.array.len() as u64), &constants, checks)
        };
        let unit = WORKGROUP / keys.lanes.max(values.lanes) * 4;
        match self.plan.policy.order {
            Order::Fill => Moves::Fill { fill: pipeline("fill", WORKGROUP), unit },
            Order::Positional => {
                let widest = even_slice(keys.chunks, slice).max(even_slice(values.chunks, slice));
                Moves::Positional {
                    walk: pipeline("walk", wide),
                    range: pipeline("range", WORKGROUP),
                    slices,
                    walkers,
                    tile: 8 * (wide / widest),
                    unit,
                }
            }
        }
    }
}

/// How a tensor's rows are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovedRow {
    /// Of 16 bytes; of rows that are moved by words, four words at most.
    pub chunks: u32,
    /// Lanes of a row, each with as many chunks as the others or one less.
    pub lanes: u32,
    /// Words of a row that is moved by words.
    pub words: Option<u32>,
    /// Chunks of a 32-byte sector, which a column slice has at least.
    pub sector: u32,
}

impl MovedRow {
    /// Most lanes of a row.
    const MOST_LANES: u32 = 48;

    /// On a CPU an invocation moves whole rows, by chunks that are all full. Elsewhere lanes access words one by one, so that
    /// those of a warp lie side by side, and take as few of them as lets a workgroup have several rows. See `benches/record`.
    pub fn new(spec: &TensorSpec, vec4: bool, serial: bool) -> Self {
        let words = spec.row_bytes() / 4;
        let a_chunk = if vec4 {
            4
        } else if serial {
            (1..=4).rev().find(|words_a_chunk| words.is_multiple_of(*words_a_chunk)).unwrap_or(1)
        } else {
            words.div_ceil(40).min(4)
        };
        let chunks = words.div_ceil(a_chunk);
        let lanes = if serial {
            1
        } else if chunks <= Self::MOST_LANES {
            chunks
        } else {
            chunks.div_ceil(chunks.div_ceil(32))
        };
        Self { chunks, lanes, words: if vec4 { None } else { Some(words) }, sector: 8 / a_chunk }
    }
}

/// The constants of the kernels that move keys and values, by column slices of at most so many chunks.
pub(crate) fn moves_constants([keys, values]: [MovedRow; 2], slice: u32) -> impl Iterator<Item = (&'static str, u32)> {
    let chunks = [
        ("KEY_CHUNKS", keys.chunks),
        ("KEY_LANES", keys.lanes),
        ("KEY_SLICE", even_slice(keys.chunks, slice)),
        ("VALUE_CHUNKS", values.chunks),
        ("VALUE_LANES", values.lanes),
        ("VALUE_SLICE", even_slice(values.chunks, slice)),
    ];
    let words = [("KEY_WORDS", keys.words), ("VALUE_WORDS", values.words)];
    chunks.into_iter().chain(words.into_iter().filter_map(|(name, words)| Some((name, words?))))
}

/// Workgroups of a walk by slices of four chunks up to which slices of two are faster.
const FEW_WALKS: u32 = 32;

/// Widest part of a row that a workgroup walks, chunks of [`MovedRow`], as all that follows.
const MAX_SLICE: u32 = 16;

/// Widest row that a workgroup walks whole, where others take more of them.
const MAX_WHOLE: u32 = 48;

/// Workgroups of 1024 that find room on a card at once. See `benches/record`.
pub(crate) const CARD: u32 = 132;

/// Column slices of a row of so many chunks, none wider than `most`, which is even or the row: as wide as each other but for the
/// last, and even, so that chunks of 16 bytes leave no 32-byte sector to two workgroups.
pub(crate) fn even_slice(chunks: u32, most: u32) -> u32 {
    match chunks.div_ceil(most) {
        1 => chunks,
        slices => chunks.div_ceil(slices).next_multiple_of(2),
    }
}

/// Column slices of so many rows, of so many chunks of keys and of values.
pub(crate) fn num_slices([keys, values]: [u32; 2], rows: u32, slice: u32) -> u32 {
    rows.saturating_mul(keys.div_ceil(slice) + values.div_ceil(slice))
}

/// Widest column slices that leave enough workgroups to fill the card, where these select rows by themselves or rows are few.
/// The narrowest cost more a byte and pay only where workgroups are few. See `benches/record`.
pub(crate) fn slice_chunks(chunks: [u32; 2], rows: u32, workgroup: u32) -> u32 {
    let wanted = 64 * 1024 / workgroup;
    let widest = chunks[0].max(chunks[1]);
    if widest < 2 * MAX_SLICE && num_slices(chunks, rows, widest) >= wanted {
        return widest;
    }
    let all = rows.saturating_mul(chunks[0] + chunks[1]);
    let narrowest = if workgroup == 1024 && all > 4 * FEW_WALKS { 4 } else { 2 };
    let is_enough = |slice: &u32| all / slice >= wanted || num_slices(chunks, rows, *slice) > wanted;
    [MAX_SLICE, 8, 4].into_iter().find(is_enough).unwrap_or(narrowest)
}

/// As [`slice_chunks`], of rows that are walked by nothing else: whole, where they are more than half of what the card takes
/// at once, or halves, where these take fewer than twice the rounds.
fn walk_slice(chunks: [u32; 2], rows: u32, workgroup: u32) -> u32 {
    let at_once = |wide: u32| wide * 1024 / workgroup;
    let widest = chunks[0].max(chunks[1]);
    let whole = num_slices(chunks, rows, widest);
    if widest <= MAX_WHOLE && whole > at_once(64) {
        let rounds = |workgroups: u32| workgroups.div_ceil(at_once(CARD));
        let is_halved = widest > MAX_SLICE && rounds(whole.saturating_mul(2)) < 2 * rounds(whole);
        return if is_halved { widest.div_ceil(2).next_multiple_of(2) } else { widest };
    }
    if num_slices(chunks, rows, MAX_SLICE) > at_once(64) {
        return MAX_SLICE;
    }
    slice_chunks(chunks, rows, workgroup).min(MAX_SLICE / 2)
}

/// Workgroups that walk rows of so many slices, as many of 1024 invocations.
pub(crate) fn walkers(slices: u32, rows: u32, workgroup: u32) -> u32 {
    slices.saturating_mul(rows).saturating_mul(workgroup) / 1024
}

/// Whether the stores of a walk's tile begin together, by a second barrier, which elsewhere takes up to a tenth of the time: by
/// slices of half a cache line, of 16-byte chunks, and where so many workgroups of 1024 take most of the card, but not all. See
/// `benches/record`.
pub(crate) const fn is_paced(slice: u32, walkers: u32) -> bool {
    slice == 4 || (walkers > 64 && walkers < 128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Dtype;

    #[test]
    fn walks_fill_the_card() {
        let of = |rows, head_dim| {
            let chunks = [TensorSpec { dtype: Dtype::F16, head_dim }.chunks(); 2];
            (slice_chunks(chunks, rows, 1024), walk_slice(chunks, rows, 1024))
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

    #[test]
    fn walks_are_paced_where_that_was_faster() {
        let expected = [
            (1, 128, false),
            (4, 128, false),
            (8, 128, true),
            (12, 128, true),
            (16, 128, false),
            (24, 128, true),
            (32, 128, false),
            (48, 128, true),
            (64, 128, false),
            (8, 64, false),
            (8, 256, false),
        ];
        for (rows, head_dim, paced) in expected {
            let chunks = [TensorSpec { dtype: Dtype::F16, head_dim }.chunks(); 2];
            let slice = walk_slice(chunks, rows, 1024);
            let walkers = walkers(num_slices(chunks, 1, slice), rows, 1024);
            assert_eq!(is_paced(slice, walkers), paced, "{rows} rows of {head_dim}: slices of {slice}, {walkers} walk");
        }
    }

    #[test]
    fn slices_are_as_many_as_kernels_count() {
        for chunks in 2_u32..=129 {
            for most in [2, 4, 8, 16, 64, chunks, chunks.div_ceil(2).next_multiple_of(2)] {
                let width = even_slice(chunks, most);
                assert_eq!(chunks.div_ceil(width), chunks.div_ceil(most), "{chunks} chunks, {most} at most");
                assert!(width <= most || width == chunks, "{chunks} chunks, {most} at most");
            }
        }
    }

    /// (words a chunk, chunks, lanes) of a row.
    #[test]
    fn lanes_have_as_much_to_move() {
        for (dtype, head_dim, vec4, expected) in [
            (Dtype::F16, 128, true, (4, 16, 16)),
            (Dtype::F16, 80, true, (4, 10, 10)),
            (Dtype::F16, 320, true, (4, 40, 40)),
            (Dtype::F32, 256, true, (4, 64, 32)),
            (Dtype::F32, 208, true, (4, 52, 26)),
            (Dtype::F16, 128, false, (2, 32, 32)),
            (Dtype::F32, 512, false, (4, 128, 32)),
            (Dtype::Q8_0, 128, false, (1, 34, 34)),
            (Dtype::Q4_0, 128, false, (1, 18, 18)),
            (Dtype::I8Scaled, 512, false, (4, 33, 33)),
        ] {
            let spec = TensorSpec { dtype, head_dim };
            let row = MovedRow::new(&spec, vec4, false);
            assert_eq!((spec.row_bytes().div_ceil(4 * row.chunks), row.chunks, row.lanes), expected, "{spec:?}");
            assert_eq!(MovedRow::new(&spec, vec4, true).lanes, 1, "a CPU");
        }
    }
}
