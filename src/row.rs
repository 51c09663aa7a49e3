//! Rows that workgroup memory can select from: a compression in one dispatch, or in two where rows are few and not short.
//! Where it can be had, which of both pays, and what it is bound to.

use crate::bind::{params_binding, range_binding, words_binding};
use crate::bound::{Bound, LayerWindow};
use crate::criterion::Score;
use crate::device::Capabilities;
use crate::draft::{Builder, LayerDraft, RowRange, direction_words, word};
use crate::first_digit::digit_window;
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::{Access, Module, Reduction};
use crate::moves::{MAX_SLICE, slice_chunks};
use crate::pages::Views;
use crate::params::{RowParams, TensorLayout};
use crate::plan::{ROW_TOKENS, WORKGROUP};
use crate::policy::{Order, Policy, Selector};
use crate::shape::{Dtype, KvShape};
use crate::stages::Stages;

/// Of one window of rows.
#[derive(Debug)]
pub(crate) struct RowStage {
    group: wgpu::BindGroup,
    /// Of ever longer rows.
    kernels: Vec<RowKernel>,
}

/// For rows of up to `most` tokens.
#[derive(Debug)]
pub(crate) struct RowKernel {
    most: u32,
    pipeline: wgpu::ComputePipeline,
    parts: Parts,
}

impl RowStage {
    fn kernel(&self, max_len: u32) -> Option<&RowKernel> {
        self.kernels.iter().find(|kernel| kernel.most >= max_len)
    }
}

/// What of a row a workgroup takes.
#[derive(Debug, Clone, Copy)]
enum Parts {
    /// All of it, its score too, with so many words for its keys and slots ([`slot_words`]).
    Whole { slot_words: u32 },
    /// After its score a share of what is moved, so many tokens at a time.
    Shares { unit: u32 },
    /// After its score a column slice, of so many.
    Slices(u32),
}

/// Words of the bins that slots share: of eight tokens an invocation, two a word beyond this many invocations.
const fn shared_words(workgroup: u32) -> u32 {
    if workgroup > MOST_WHOLE { ROW_TOKENS / 2 * workgroup } else { ROW_TOKENS * workgroup }
}

/// As in shared/radix_row.wgsl.
const MOST_WHOLE: u32 = 512;

/// Workgroup memory of the kernel, bytes: so many words; scans; and, where they do not go by shuffles, the sums of lanes.
fn memory(words: u32, workgroup: u32, reduction: Reduction) -> u32 {
    let sums = if reduction == Reduction::Workgroup { 20 } else { 0 };
    256 + 4 * words + (4 + sums) * workgroup
}

/// Where the workgroup of a whole row holds its keys, and then its slots: words of their own, 0 where they share those of the
/// bins; `None` where neither has room.
///
/// With words of their own, first digits are counted while keys are awaited. On an H100 `Fill` gains 2 to 4 % by it, but not in small
/// workgroups, of which fewer fit a multiprocessor then. See `benches/record`.
fn slot_words(len: u32, workgroup: u32, capabilities: &Capabilities, reduction: Reduction) -> Option<u32> {
    let words = len.next_power_of_two().max(DIGIT_WORDS * 2);
    let fits = memory(DIGIT_WORDS + words, workgroup, reduction) <= capabilities.workgroup_bytes;
    if workgroup > WORKGROUP && fits {
        return Some(words);
    }
    (len <= shared_words(workgroup)).then_some(0)
}

/// Words of the counts of first digits, as in shared/radix_row.wgsl.
const DIGIT_WORDS: u32 = 1024;

/// How rows of up to `most` tokens are taken.
#[derive(Debug, Clone, Copy)]
struct Taken {
    most: u32,
    workgroup: u32,
    /// Of whole rows ([`slot_words`]); `None`: in parts.
    slot_words: Option<u32>,
}

/// Lengths of rows, ascending, for which kernels are made: what a workgroup of each size holds, the capacity, and up to where
/// rows are taken whole.
fn row_lens(capacity: u32, is_full: impl Fn(u32) -> bool) -> Vec<u32> {
    let held = SIZES.map(|workgroup| ROW_TOKENS * workgroup);
    let longest = capacity.min(held[2]);
    let mut lens: Vec<_> = held.into_iter().filter(|&held| held < longest).chain([longest]).collect();
    // Full rows come before others: the first that is not, by halving.
    let (mut whole, mut beyond) = (0, longest + 1);
    while beyond - whole > 1 {
        let middle = whole + (beyond - whole) / 2;
        if is_full(middle) { whole = middle } else { beyond = middle }
    }
    if let Err(place) = lens.binary_search(&whole) {
        if whole > 0 {
            lens.insert(place, whole);
        }
    }
    lens
}

const SIZES: [u32; 3] = [WORKGROUP, 2 * WORKGROUP, 4 * WORKGROUP];

fn has_size(workgroup: u32, capabilities: &Capabilities, reduction: Reduction) -> bool {
    let fits = memory(shared_words(workgroup), workgroup, reduction) <= capabilities.workgroup_bytes;
    fits && workgroup <= capabilities.row_workgroup
}

/// So many rows of a window, which is the only one or not, of up to `len` tokens; `None` where they go stage by stage: the
/// plan asks for more than the kernel does, rows may be longer than it holds, or several windows of parts would wait for
/// each other.
fn taken(
    (shape, len): (&KvShape, u32),
    policy: &Policy,
    capabilities: &Capabilities,
    rows: (u64, bool),
) -> Option<Taken> {
    // On a CPU the chain is faster: there a workgroup's locals go through memory at each barrier.
    let plain = !capabilities.serial
        && policy.selector == Selector::Auto
        && policy.score_in_use() == Score::KeyNorm
        && !policy.cached_norms
        && !policy.segments
        && policy.pool.is_none()
        && !shape.keys.dtype.is_quantised()
        && !shape.keys.has_tail()
        && !shape.values.has_tail();
    let (num_rows, is_alone) = rows;
    let is_full = fills_card((shape, len), policy, capabilities, rows);
    if !plain || !(is_full || is_alone) {
        return None;
    }
    let reduction = capabilities.reduction(shape.keys.norm_lanes());
    let sizes = SIZES.into_iter().filter(|&workgroup| has_size(workgroup, capabilities, reduction));
    let wanted = if is_full { wanted_workgroup(len, num_rows) } else { len.div_ceil(ROW_TOKENS) };
    let largest = sizes.clone().next_back().filter(|largest| ROW_TOKENS * largest >= len);
    let workgroup = sizes.clone().find(|&workgroup| workgroup >= wanted).or(largest)?;
    let slot_words = slot_words(len, workgroup, capabilities, reduction).filter(|_| is_full);
    (slot_words.is_some() || is_alone).then_some(Taken { most: len, workgroup, slot_words })
}

/// Invocations for a row that is taken whole: where rows are few, more than eight tokens each would ask for, since then more
/// loads are in flight. See `benches/record`.
fn wanted_workgroup(len: u32, num_rows: u64) -> u32 {
    let least = len.div_ceil(ROW_TOKENS);
    if num_rows <= FEW_ROWS {
        4 * WORKGROUP
    } else if num_rows <= 2 * FEW_ROWS {
        len.min(2 * WORKGROUP).max(least)
    } else {
        least
    }
}

/// Whether so many rows are taken whole: they fill the card, or do so well enough where the others would go stage by stage, or
/// are so short that a second dispatch takes longer than they do.
fn fills_card(
    (shape, len): (&KvShape, u32),
    policy: &Policy,
    capabilities: &Capabilities,
    (num_rows, is_alone): (u64, bool),
) -> bool {
    let is_wide = has_size(4 * WORKGROUP, capabilities, capabilities.reduction(shape.keys.norm_lanes()));
    // The squares of bf16 take more arithmetic, and a workgroup moves few bytes at a time.
    let needs_more = policy.order == Order::Positional || shape.keys.dtype == Dtype::Bf16;
    let kib = u64::from(len) * u64::from(shape.keys.row_bytes()) / 1024;
    let full = match kib {
        1025.. => MORE_FULL_ROWS,
        _ if !is_alone => FULL_ROWS_OF_WINDOWS,
        257.. if needs_more => MORE_FULL_ROWS,
        257.. => FULL_ROWS,
        // Measured with as many invocations.
        _ if !is_wide => {
            if needs_more {
                MORE_FULL_ROWS
            } else {
                FULL_ROWS
            }
        }
        129.. => FULL_ROWS_OF_SHORT,
        65.. => FULL_ROWS_OF_SHORT / 3,
        _ => FULL_ROWS_OF_SHORT / 6,
    };
    num_rows >= full
}

impl Parts {
    const fn is_whole(self) -> bool {
        matches!(self, Self::Whole { .. })
    }
}

impl Bound {
    /// Whether to take rows by the kernels of whole rows: all stages are wanted, and every window has one for this length.
    pub(crate) fn takes_rows(&self, stages: Stages, max_len: u32) -> bool {
        let stages = [Stages::SCORE, Stages::SELECT, Stages::COMPACT].iter().all(|&stage| stages.has(stage));
        let has_kernel = |window: &LayerWindow| window.row.as_ref().is_some_and(|row| row.kernel(max_len).is_some());
        stages && self.banded.is_empty() && self.layers.iter().all(has_kernel)
    }

    pub(crate) fn record_rows(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        let tiles = self.plan.tiles;
        for window in &self.layers {
            let Some((row, kernel)) = window.row.as_ref().and_then(|row| Some((row, row.kernel(max_len)?))) else {
                return; // takes_rows has found one
            };
            window.choose_arrays(pass);
            if !kernel.parts.is_whole() {
                window.score.record(pass, max_len, window.num_rows, (false, tiles));
            }
            pass.set_pipeline(&kernel.pipeline);
            pass.set_bind_group(0, &row.group, &[]);
            pass.dispatch_workgroups(self.row_workgroups(kernel.parts, max_len, window.num_rows), window.num_rows, 1);
        }
    }

    /// Workgroups of a row; where they take parts, one more for its state.
    fn row_workgroups(&self, parts: Parts, max_len: u32, num_rows: u32) -> u32 {
        match parts {
            Parts::Whole { .. } => 1,
            Parts::Shares { unit } => {
                let most = (FILL_PARTS / num_rows).max(2);
                2 * self.plan.max_moved(max_len).div_ceil(unit).clamp(1, most) + 1
            }
            Parts::Slices(slices) => slices + 1,
        }
    }
}

/// Rows of a window from which on a workgroup to a row is faster than two dispatches, which give a row several: at best. See
/// `benches/record`.
const FULL_ROWS: u64 = 64;
/// Likewise of large rows, and where a workgroup has more to do for a byte.
const MORE_FULL_ROWS: u64 = 96;
/// Likewise of one of several windows, which would go stage by stage.
const FULL_ROWS_OF_WINDOWS: u64 = 48;
/// Likewise of rows of up to 256 KiB of keys; a third of it of half as many, a sixth of fewer.
const FULL_ROWS_OF_SHORT: u64 = 48;
/// Workgroups that move the keys of all rows, and as many their values: each selects for itself, and more than fill the card
/// would do so in turn.
const FILL_PARTS: u32 = 64;
/// Rows up to which a workgroup has a multiprocessor for itself.
const FEW_ROWS: u64 = 128;

impl Builder<'_> {
    /// By which kernels so many rows are taken, of ever longer rows.
    fn taken(&self, num_rows: u32) -> impl Iterator<Item = Taken> {
        let plan = &self.plan;
        let rows = (u64::from(num_rows), u64::from(num_rows) == plan.scratch.num_rows);
        let capabilities = &self.kernels().capabilities;
        let lens =
            row_lens(plan.shape.capacity, |len| fills_card((&plan.shape, len), &plan.policy, capabilities, rows));
        lens.into_iter().filter_map(move |len| taken((&plan.shape, len), &plan.policy, capabilities, rows))
    }

    /// The parameters of whole rows; `None` where the kernel cannot take them.
    pub(crate) fn row_params(
        &self,
        (compressed, rows): (u32, &RowRange),
        [keys, values]: [(TensorLayout, Access); 2],
    ) -> Option<RowParams> {
        let (scratch, policy) = (&self.plan.scratch, &self.plan.policy);
        let has_access = [keys.1, values.1] == [Access::Vec4; 2] && self.pages.is_none();
        self.taken(rows.num_rows).next().filter(|_| has_access)?;
        let (direction, seed) = direction_words(policy.direction);
        let (digit_shift, digit_window) = digit_window(policy);
        let share = policy.share_bits();
        Some(RowParams {
            state: self.state_layout(rows.first_position),
            keys: keys.0,
            values: values.0,
            num_rows: rows.num_rows,
            first_row: rows.first_row,
            layer: rows.layer,
            first_sequence: rows.first_row / self.plan.shape.num_kv_heads,
            first_rule: compressed * self.plan.shape.num_kv_heads,
            order_stride: scratch.order_stride,
            keys_held: ROW_TOKENS,
            digit_shift,
            digit_window,
            direction,
            seed_low: word(seed),
            seed_high: word(seed >> 32),
            sinks: policy.sinks,
            recent: policy.recent,
            share_low: word(share),
            share_high: word(share >> 32),
            pad0: 0,
            pad1: 0,
        })
    }

    pub(crate) fn row_stage(
        &self,
        draft: &LayerDraft,
        params: &wgpu::Buffer,
        (rules, views): (&wgpu::Buffer, &Views<'_>),
        checks: &mut Checks,
    ) -> Option<RowStage> {
        let offset = draft.row_params?;
        let view = &views.layers[draft.rows.layer as usize];
        let position_words = u64::from(draft.rows.num_rows) * u64::from(self.plan.shape.capacity) + 64;
        let scratch = self.row_scratch(draft.rows.first_scratch_row, draft.rows.num_rows);
        let mut bindings = vec![params_binding::<RowParams>(params, offset)];
        if draft.array.is_empty() {
            bindings.push(range_binding(view.keys.buffer, draft.window.keys));
            bindings.push(range_binding(view.values.buffer, draft.window.values));
        }
        bindings.extend([
            self.state.meta().as_entire_binding(),
            words_binding(self.state.positions(), draft.rows.first_position, position_words),
            scratch.order_keys,
            self.state.status().as_entire_binding(),
            rules.as_entire_binding(),
        ]);
        let kind = if draft.array.is_empty() { LayoutKind::Row } else { LayoutKind::RowArrays };
        let group = self.group(kind, &bindings, checks);
        let kernel = |taken: Taken| {
            let (parts, slice) = self.row_parts(draft.rows.num_rows, taken);
            let pipeline = self.row_pipeline(parts, (taken.workgroup, slice), draft, checks);
            RowKernel { most: taken.most, pipeline, parts }
        };
        Some(RowStage { group, kernels: self.taken(draft.rows.num_rows).map(kernel).collect() })
    }

    /// What of a row a workgroup takes, and its column slices, 16-byte chunks.
    fn row_parts(&self, num_rows: u32, Taken { workgroup, slot_words, .. }: Taken) -> (Parts, u32) {
        let (shape, policy) = (&self.plan.shape, &self.plan.policy);
        let (keys, values) = (&shape.keys, &shape.values);
        if let Some(slot_words) = slot_words {
            let chunks = keys.chunks().max(values.chunks());
            return (Parts::Whole { slot_words }, chunks.next_power_of_two().min(MAX_SLICE));
        }
        let slice = slice_chunks(shape, num_rows, workgroup);
        let parts = match policy.order {
            Order::Fill => Parts::Shares { unit: workgroup / keys.lanes().max(values.lanes()) * 4 },
            Order::Positional => Parts::Slices(keys.chunks().div_ceil(slice) + values.chunks().div_ceil(slice)),
        };
        (parts, slice)
    }

    fn row_pipeline(
        &self,
        parts: Parts,
        (workgroup, slice): (u32, u32),
        draft: &LayerDraft,
        checks: &mut Checks,
    ) -> wgpu::ComputePipeline {
        let shape = &self.plan.shape;
        let (entry, slot_words) = match parts {
            Parts::Whole { slot_words } => ("compress_row", slot_words),
            Parts::Shares { .. } | Parts::Slices(_) => ("move_row", 0),
        };
        let mut constants = vec![
            ("WG_SIZE", workgroup),
            ("LANES", shape.keys.norm_lanes()),
            ("CHUNKS", shape.keys.norm_chunks()),
            ("SLICE_CHUNKS", slice),
            ("SLOT_WORDS", slot_words),
            ("IN_ORDER", u32::from(self.plan.policy.order == Order::Positional)),
        ];
        constants.extend(self.moves_constants());
        let constants: Vec<_> = constants.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
        let reduction = self.kernels().capabilities.reduction(shape.keys.norm_lanes());
        let num_layers = word(draft.array.len() as u64);
        let module = Module::Row { dtype: shape.keys.dtype, reduction, arrays: num_layers > 0 };
        self.kernels().pipeline_of(module, entry, num_layers, &constants, checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;
    use crate::shape::TensorSpec;

    #[test]
    fn kernels_are_made_for_what_workgroups_hold() {
        for (capacity, full, expected) in [
            (1, 0, &[1][..]),
            (2048, 1 << 20, &[2048]),
            (2049, 2049, &[2048, 2049]),
            (5000, 0, &[2048, 4096, 5000]),
            (8192, 700, &[700, 2048, 4096, 8192]),
            (1 << 20, 4096, &[2048, 4096, 8192]),
            (1 << 20, 5000, &[2048, 4096, 5000, 8192]),
        ] {
            assert_eq!(row_lens(capacity, |len| len <= full), expected, "a capacity of {capacity}, {full} full");
        }
    }

    #[test]
    fn few_rows_get_wide_workgroups() {
        for (len, num_rows, expected) in
            [(100, 128, 1024), (8192, 64, 1024), (256, 129, 256), (512, 256, 512), (8192, 256, 1024), (4096, 257, 512)]
        {
            assert_eq!(wanted_workgroup(len, num_rows), expected, "{num_rows} rows of {len}");
        }
    }

    fn capabilities(row_workgroup: u32, workgroup_bytes: u32, shuffle_lanes: u32) -> Capabilities {
        Capabilities {
            shuffle_lanes,
            max_binding_bytes: 1 << 27,
            max_buffer_bytes: 1 << 28,
            offset_alignment: 256,
            row_workgroup,
            workgroup_bytes,
            sort_len: 2048,
            max_workgroups: 65_535,
            layers_at_once: true,
            array_elements: 0,
            serial: false,
            wide: false,
        }
    }

    fn geometry(len: u32, dtype: Dtype, order: Order) -> (KvShape, Policy) {
        let spec = TensorSpec::new(dtype, 128);
        let shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 1, capacity: len, keys: spec, values: spec };
        (shape, Policy { order, ..Policy::new(Budget::keep_ratio(0.5)) })
    }

    /// The fewest rows that are taken whole.
    #[test]
    fn short_rows_are_taken_whole_where_they_are_few() {
        use Dtype::{Bf16, F16};
        use Order::{Fill, Positional};
        let (wide, narrow) = (capabilities(1024, 49_152, 32), capabilities(256, 16_384, 0));
        for (len, dtype, order, is_alone, expected) in [
            (256, F16, Positional, true, [8, 96]),
            (512, F16, Fill, true, [16, 64]),
            (1024, Bf16, Positional, true, [48, 96]),
            (2048, F16, Fill, true, [64, 64]),
            (2048, F16, Positional, true, [96, 96]),
            (4096, Bf16, Fill, true, [96, 96]),
            (4096, F16, Fill, true, [64, 64]),
            (8192, F16, Fill, true, [96, 96]),
            (512, F16, Fill, false, [48, 48]),
            (8192, F16, Fill, false, [96, 96]),
        ] {
            let (shape, policy) = geometry(len, dtype, order);
            let fewest = [wide, narrow].map(|capabilities| {
                let is_full = |&rows: &u64| fills_card((&shape, len), &policy, &capabilities, (rows, is_alone));
                (1..200).find(is_full).unwrap_or(0)
            });
            assert_eq!(fewest, expected, "rows of {len} {dtype:?}, {order:?}");
        }
    }

    /// (invocations, words of slots; none in parts) by workgroup memory and reduction, as the README has it.
    #[test]
    fn kernels_fit_workgroup_memory() {
        let kib = [16, 24, 32, 48];
        for (len, num_rows, subgroups, expected) in [
            (2048, 300, 32, [Some((256, Some(0))); 4]),
            (2048, 300, 0, [Some((256, Some(0))); 4]),
            (4096, 300, 32, [None, Some((512, Some(4096))), Some((512, Some(4096))), Some((512, Some(4096)))]),
            (4096, 300, 0, [None, None, Some((512, Some(0))), Some((512, Some(4096)))]),
            (8192, 300, 32, [None, Some((1024, None)), Some((1024, None)), Some((1024, Some(8192)))]),
            (8192, 300, 0, [None, None, None, Some((1024, None))]),
            (
                2048,
                100,
                32,
                [Some((256, Some(0))), Some((1024, Some(2048))), Some((1024, Some(2048))), Some((1024, Some(2048)))],
            ),
            (4096, 4, 32, [None, Some((512, None)), Some((512, None)), Some((512, None))]),
        ] {
            let (shape, policy) = geometry(len, Dtype::F16, Order::Fill);
            let got = kib.map(|kib| {
                let capabilities = capabilities(1024, kib << 10, subgroups);
                let taken = taken((&shape, len), &policy, &capabilities, (num_rows, true));
                taken.map(|taken| (taken.workgroup, taken.slot_words))
            });
            assert_eq!(got, expected, "{num_rows} rows of {len}, shuffles of {subgroups} lanes");
        }
    }
}
