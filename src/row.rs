//! Rows that workgroup memory can select from: a compression in one dispatch, or in two where rows are few and not short, or
//! what follows the norms that are cached. What they are bound to, and how they are recorded.

use crate::bind::{params_binding, range_binding, words_binding};
use crate::bound::{Bound, LayerWindow};
use crate::device::Capabilities;
use crate::draft::{Builder, LayerDraft, RowRange, direction_of, word};
use crate::first_digit::digit_window;
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::{Access, Module};
use crate::moves::{MovedRow, is_paced, moves_constants, num_slices, slice_chunks, walkers};
use crate::pages::Views;
use crate::params::{RowParams, TensorLayout};
use crate::plan::{PlanInner, ROW_TOKENS, WORKGROUP};
use crate::policy::Order;
use crate::row_choice::{Taken, choices};
use crate::shape::Dtype;
use crate::stages::Stages;

/// Of one window of rows.
#[derive(Debug)]
pub(crate) struct RowStage {
    group: wgpu::BindGroup,
    /// Of ever longer rows.
    kernels: Vec<RowKernel>,
}

/// Of the rows that it takes.
#[derive(Debug)]
struct RowKernel {
    taken: Taken,
    pipeline: wgpu::ComputePipeline,
    parts: Parts,
}

impl LayerWindow {
    /// What takes rows of up to so many tokens, and its bindings.
    fn row_kernel(&self, plan: &PlanInner, max_len: u32) -> Option<(&wgpu::BindGroup, &RowKernel)> {
        let row = self.row.as_ref()?;
        let kernel = row.kernels.iter().find(|kernel| kernel.taken.most >= max_len)?;
        (plan.max_moved(max_len) <= kernel.taken.most_moved).then_some((&row.group, kernel))
    }
}

/// What of a row a workgroup takes.
#[derive(Debug, Clone, Copy)]
enum Parts {
    /// All of it, its score too unless norms are cached, with so many words for its keys and slots ([`Taken`]).
    Whole { slot_words: u32 },
    /// After its score a share of what is moved, so many tokens at a time: of so many shares at most, keys and values each.
    Shares { unit: u32, most: u32 },
    /// After its score a column slice, of so many.
    Slices(u32),
}

impl Parts {
    const fn is_whole(self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    /// Rows of the grid that are scouts'.
    const fn scouts(self, capabilities: &Capabilities) -> u32 {
        if self.is_whole() { capabilities.scouts_of_rows() } else { capabilities.scouts_of_parts() }
    }
}

impl Bound {
    /// Whether to take rows by the kernels of whole rows: all stages are wanted, and every window has one for this length.
    pub(crate) fn takes_rows(&self, stages: Stages, max_len: u32) -> bool {
        let stages = [Stages::SCORE, Stages::SELECT, Stages::COMPACT].iter().all(|&stage| stages.has(stage));
        stages
            && self.banded.is_empty()
            && self.layers.iter().all(|window| window.row_kernel(&self.plan, max_len).is_some())
    }

    pub(crate) fn record_rows(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        let tiles = self.plan.tiles;
        let kernels = self.layers.iter().filter_map(|window| Some((window, window.row_kernel(&self.plan, max_len)?)));
        for (window, (group, kernel)) in kernels {
            window.choose_arrays(pass);
            if !kernel.parts.is_whole() {
                window.score.record(pass, max_len, window.num_rows, (false, tiles));
            }
            pass.set_pipeline(&kernel.pipeline);
            pass.set_bind_group(0, group, &[]);
            let workgroups = self.row_workgroups(kernel, max_len);
            let scouts = kernel.parts.scouts(&self.plan.kernels.capabilities);
            pass.dispatch_workgroups(workgroups, scouts + window.num_rows, 1);
        }
    }

    /// Workgroups of a row; where they take parts, one more for its state, unless it alone would have to wait for room.
    fn row_workgroups(&self, kernel: &RowKernel, max_len: u32) -> u32 {
        let parts = match kernel.parts {
            Parts::Whole { .. } => return 1,
            Parts::Shares { unit, most } => 2 * self.plan.max_moved(max_len).div_ceil(unit).clamp(1, most),
            Parts::Slices(slices) => slices,
        };
        parts + u32::from(parts != kernel.taken.at_once)
    }
}

/// Most workgroups that move a row's keys, and as many its values: each selects for itself, and more than find room beside those
/// of states and scouts would do so in turn; large ones find less. Two at least, unless one each is what finds room: where a row
/// has two workgroups, or three of two eights an invocation. See `benches/record`.
fn fill_parts(taken: &Taken, num_rows: u32) -> u32 {
    let of_all_rows = if taken.workgroup > 2 * WORKGROUP { 48 } else { 64 };
    let least = match taken.at_once {
        2 => 1,
        3 if taken.pair_words > 0 => 1,
        _ => 2,
    };
    (of_all_rows / num_rows).max(least)
}

/// Widest part of a row that the workgroup of a whole row walks at a time, 16-byte chunks.
const WHOLE_SLICE: u32 = 64;

impl Builder<'_> {
    /// By which kernels so many rows are taken, of ever longer rows.
    fn taken(&self, num_rows: u32, accesses: [Access; 2]) -> impl Iterator<Item = Taken> {
        let plan = &self.plan;
        let rows = (u64::from(num_rows), u64::from(num_rows) == plan.scratch.num_rows);
        let is_vec4 = accesses == [Access::Vec4; 2];
        let may_be_words = plan.policy.cached_norms && accesses[1] != Access::Joined;
        let has_access = (is_vec4 || may_be_words) && self.pages.is_none();
        let all = choices(&plan.shape, &plan.policy, &self.kernels().capabilities, rows).filter(move |_| has_access);
        all.filter_map(move |taken| if is_vec4 { Some(taken) } else { taken.by_words(&plan.shape, plan.policy.order) })
    }

    /// The parameters of whole rows; `None` where the kernel cannot take them.
    pub(crate) fn row_params(
        &self,
        (compressed, rows): (u32, &RowRange),
        [keys, values]: [(TensorLayout, Access); 2],
    ) -> Option<RowParams> {
        let (scratch, policy) = (&self.plan.scratch, &self.plan.policy);
        self.taken(rows.num_rows, [keys.1, values.1]).next()?;
        let (direction, seed) = direction_of(policy);
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
        let scores = if self.plan.policy.cached_norms {
            words_binding(self.state.norms_or_dummy(), draft.rows.first_position, position_words)
        } else {
            scratch.order_keys
        };
        let mut bindings = vec![params_binding::<RowParams>(params, offset)];
        if draft.array.is_empty() {
            bindings.push(range_binding(view.keys.buffer, draft.window.keys));
            bindings.push(range_binding(view.values.buffer, draft.window.values));
        }
        bindings.extend([
            self.state.meta().as_entire_binding(),
            words_binding(self.state.positions(), draft.rows.first_position, position_words),
            scores,
            self.state.status().as_entire_binding(),
            rules.as_entire_binding(),
        ]);
        let kind = if draft.array.is_empty() { LayoutKind::Row } else { LayoutKind::RowArrays };
        let group = self.group(kind, &bindings, checks);
        let accesses = [draft.keys_access, draft.values_access];
        let kernel = |taken: Taken| {
            let (parts, slice) = self.row_parts(draft, &taken);
            let pipeline = self.row_pipeline(parts, (&taken, slice), draft, checks);
            RowKernel { taken, pipeline, parts }
        };
        Some(RowStage { group, kernels: self.taken(draft.rows.num_rows, accesses).map(kernel).collect() })
    }

    fn moved_in_rows(&self, draft: &LayerDraft) -> [MovedRow; 2] {
        let shape = &self.plan.shape;
        [self.moved(&shape.keys, draft.keys_access), self.moved(&shape.values, draft.values_access)]
    }

    /// What of a row a workgroup takes, and its column slices, 16-byte chunks.
    fn row_parts(&self, draft: &LayerDraft, taken: &Taken) -> (Parts, u32) {
        if let Some(slot_words) = taken.slot_words {
            return (Parts::Whole { slot_words }, WHOLE_SLICE);
        }
        let [keys, values] = self.moved_in_rows(draft);
        let num_rows = draft.rows.num_rows;
        let chunks = [keys.chunks, values.chunks];
        let slice = slice_chunks(chunks, num_rows, taken.workgroup);
        let parts = match self.plan.policy.order {
            Order::Fill => Parts::Shares {
                unit: taken.workgroup / keys.lanes.max(values.lanes) * 4,
                most: fill_parts(taken, num_rows),
            },
            Order::Positional => Parts::Slices(num_slices(chunks, 1, slice)),
        };
        (parts, slice)
    }

    fn row_pipeline(
        &self,
        parts: Parts,
        (taken, slice): (&Taken, u32),
        draft: &LayerDraft,
        checks: &mut Checks,
    ) -> wgpu::ComputePipeline {
        let shape = &self.plan.shape;
        if self.plan.policy.cached_norms {
            return self.cached_pipeline((taken, slice), draft, checks);
        }
        let (entry, slot_words) = match parts {
            Parts::Whole { slot_words } => ("compress_row", slot_words),
            Parts::Shares { .. } | Parts::Slices(_) => ("move_row", 0),
        };
        let paced = match parts {
            Parts::Slices(slices) => is_paced(slice, walkers(slices, draft.rows.num_rows, taken.workgroup)),
            _ => false,
        };
        let mut constants = vec![
            ("WG_SIZE", taken.workgroup),
            ("PAIR_WORDS", taken.pair_words),
            ("LANES", shape.keys.norm_lanes()),
            ("CHUNKS", shape.keys.norm_chunks()),
            ("SLOT_WORDS", slot_words),
            ("SCOUTS", parts.scouts(&self.kernels().capabilities)),
            ("SCOUTS_SCORE", u32::from(shape.keys.dtype != Dtype::Bf16)),
            ("PACED", u32::from(paced)),
            ("IN_ORDER", u32::from(self.plan.policy.order == Order::Positional)),
        ];
        constants.extend(moves_constants(self.moved_in_rows(draft), slice));
        let constants: Vec<_> = constants.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
        let reduction = self.kernels().capabilities.reduction(shape.keys.norm_lanes());
        let num_layers = word(draft.array.len() as u64);
        let module = Module::Row { dtype: shape.keys.dtype, reduction, arrays: num_layers > 0 };
        self.kernels().pipeline_of(module, entry, num_layers, &constants, checks)
    }

    /// Of rows whose norms are cached.
    fn cached_pipeline(
        &self,
        (taken, slice): (&Taken, u32),
        draft: &LayerDraft,
        checks: &mut Checks,
    ) -> wgpu::ComputePipeline {
        let capabilities = &self.kernels().capabilities;
        let [keys, values] = self.moved_in_rows(draft);
        let mut constants = vec![
            ("WG_SIZE", taken.workgroup),
            ("PAIR_WORDS", taken.pair_words),
            ("SCOUTS", capabilities.scouts_of_rows()),
            ("IN_ORDER", u32::from(self.plan.policy.order == Order::Positional)),
        ];
        constants.extend(moves_constants([keys, values], slice));
        let constants: Vec<_> = constants.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
        let num_layers = word(draft.array.len() as u64);
        let module = Module::RowCached {
            subgroups: capabilities.shuffle_lanes > 0,
            keys_vec4: keys.words.is_none(),
            values_vec4: values.words.is_none(),
            arrays: num_layers > 0,
        };
        self.kernels().pipeline_of(module, "compress_cached", num_layers, &constants, checks)
    }
}
