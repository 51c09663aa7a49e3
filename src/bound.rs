//! A plan bound to buffers, and the recording of its stages.

use std::sync::Arc;

use crate::bands::BandedLayer;
use crate::error::ArgumentError;
use crate::moves::Moves;
use crate::pages::FreedPages;
use crate::plan::{PlanInner, ROW_TOKENS, SELECT_TILE, WORKGROUP};
use crate::policy::Selector;
use crate::row::RowStage;
use crate::score::ScoreStage;
use crate::select::MANY_TILES;
use crate::stages::Stages;
use crate::state::{CacheState, MAX_SEGMENTS, check_slot};
use crate::tables::{BoundPages, checks_tables};

/// A plan bound to the buffers of its layers. `Send + Sync`; keeps its buffers alive.
#[derive(Debug)]
pub struct Bound {
    pub(crate) plan: Arc<PlanInner>,
    pub(crate) layers: Vec<LayerWindow>,
    /// Of the layers whose rows exceed a binding.
    pub(crate) banded: Vec<BandedLayer>,
    pub(crate) selects: Vec<SelectWindow>,
    /// Of a paged cache.
    pub(crate) pages: Option<BoundPages>,
    pub(crate) state: CacheState,
    pub(crate) append_group: wgpu::BindGroup,
    /// Parameters of append slot 0; those of the other slots follow.
    pub(crate) append_params_offset: u32,
}

#[derive(Debug)]
pub(crate) struct LayerWindow {
    pub num_rows: u32,
    pub score: ScoreStage,
    /// Where layers are bound as arrays: group 1 of all kernels that read or move keys.
    pub arrays: Option<wgpu::BindGroup>,
    pub compact_group: wgpu::BindGroup,
    /// Offset of the parameters of `fill`, or of the walk that takes all; those of first walks and of ranges follow, as
    /// `RangeRule` has them.
    pub compact_params: u32,
    pub moves: Moves,
    /// Where workgroup memory can select from whole rows, if they are short.
    pub row: Option<RowStage>,
}

#[derive(Debug)]
pub(crate) struct SelectWindow {
    pub num_rows: u32,
    pub group: wgpu::BindGroup,
    pub state_group: wgpu::BindGroup,
    pub bitonic_group: Option<wgpu::BindGroup>,
    pub order_group: Option<wgpu::BindGroup>,
    pub reserve_group: Option<wgpu::BindGroup>,
    pub pool_group: Option<wgpu::BindGroup>,
    /// Offset of the window's parameters; those of the sort's steps follow.
    pub params_offset: u32,
    /// Offset of the parameters of the pool's first pass; those of the others follow.
    pub pool_params: u32,
    pub order_params: u32,
}

/// Passes of a pool: four digits of the medians, four of its threshold.
pub(crate) const POOL_PASSES: u32 = 8;

/// How the select stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    RadixRow,
    RadixLong,
    BitonicRow,
    BitonicLong,
}

/// Workgroups of the state's update: twice what an H100 holds at a time.
const FINISH_WORKGROUPS: u32 = 2048;

/// Bytes between parameter blocks: WebGPU's largest uniform offset alignment.
pub(crate) const PARAMS_STRIDE: u32 = 256;

impl LayerWindow {
    pub(crate) fn choose_arrays(&self, pass: &mut wgpu::ComputePass<'_>) {
        if let Some(arrays) = &self.arrays {
            pass.set_bind_group(1, arrays, &[]);
        }
    }
}

impl Bound {
    /// The state that was bound.
    #[must_use]
    pub const fn state(&self) -> &CacheState {
        &self.state
    }

    /// What the last compression freed of a paged cache; `None` of another.
    #[must_use]
    pub fn freed_pages(&self) -> Option<&FreedPages> {
        self.pages.as_ref().map(|p| &p.freed)
    }

    /// Records the whole compression of every bound layer into the caller's pass. `max_len` (tokens) bounds the lengths of the
    /// rows at execution, sizes the grids and chooses the kernels; the lengths themselves are read from the cache state on the
    /// GPU. With 0 nothing is recorded, but of a paged cache what empties [`Bound::freed_pages`]. A row that is longer all the
    /// same stays as it is, or it is undefined which of its tokens are kept, which norms are cached for them and which status
    /// bits are set for it; other rows are not affected, but for heads that share a pool with it, whose budgets are undefined
    /// too.
    ///
    /// Neither submits, polls, maps nor creates anything, and leaves the pass with another pipeline and bind groups 0
    /// and 1.
    ///
    /// # Errors
    /// `max_len` above the capacity; nothing is recorded then.
    ///
    /// # Determinism
    /// The same input gives the same bits in every run; of f16, bf16, f8 and quantised keys also with every selector, `max_len`,
    /// subgroup size and device. Of f32 keys a driver may fuse multiply and add in one kernel and not in another.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) -> Result<(), ArgumentError> {
        self.record_stages(pass, max_len, Stages::ALL)
    }

    /// Records the whole compression into one pass of its own or, where layers go one by one, into two: wgpu separates two
    /// uses of a buffer in one pass by a barrier, one a layer, but those between passes all at once. A pass takes longer to
    /// begin than a dispatch, so that where one dispatch takes the rows of all layers
    /// ([`Options::layers_at_once`](crate::Options::layers_at_once)) [`Bound::record`] does as well.
    ///
    /// # Errors
    /// As [`Bound::record`].
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, max_len: u32) -> Result<(), ArgumentError> {
        self.check_max("max_len", max_len)?;
        let open = |label| wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        if self.takes_rows(Stages::ALL, max_len) || self.layers.len() + self.banded.len() <= 1 {
            return self.record(&mut encoder.begin_compute_pass(&open("keynorm")), max_len);
        }
        for (label, stages) in [
            ("keynorm.select", Stages::NORMS.and(Stages::SCORE).and(Stages::SELECT)),
            ("keynorm.compact", Stages::COMPACT),
        ] {
            self.record_stages(&mut encoder.begin_compute_pass(&open(label)), max_len, stages)?;
        }
        Ok(())
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
        self.check_max("max_len", max_len)?;
        if self.selects.is_empty() {
            return Ok(());
        }
        if max_len == 0 {
            // The list of freed pages is made anew even if nothing is left.
            if let Some(pages) = self.pages.as_ref().filter(|_| stages.has(Stages::COMPACT)) {
                pages.record_check(pass, false);
                pages.record_free(pass);
            }
            return Ok(());
        }
        let cached = self.plan.policy.cached_norms;
        if let Some(pages) = self.pages.as_ref().filter(|_| checks_tables(stages)) {
            pages.record_check(pass, !stages.has(Stages::COMPACT));
        }
        if stages.has(Stages::NORMS) && cached {
            self.record_new_norms(pass, max_len);
        }
        if self.takes_rows(stages, max_len) {
            self.record_rows(pass, max_len);
            return Ok(());
        }
        let path = self.path(max_len);
        let both = stages.has(Stages::SCORE) && stages.has(Stages::SELECT);
        let fused = path == Path::RadixLong && both && self.plan.policy.may_fuse();
        if stages.has(Stages::SCORE) {
            if cached {
                self.record_order(pass, max_len, fused);
            } else {
                self.record_score(pass, max_len, fused);
            }
        }
        if stages.has(Stages::SELECT) {
            for window in &self.selects {
                self.record_budgets(pass, window, max_len);
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
    /// Semantically the same as [`CacheRow::append`](crate::reference::CacheRow::append).
    ///
    /// # Errors
    /// A slot that does not exist; nothing is recorded then.
    pub fn record_append(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32) -> Result<(), ArgumentError> {
        self.record_counts(pass, &self.plan.select.append, slot)
    }

    /// Records that appended tokens are taken back, as speculative decoding does with those that are rejected: takes the counts
    /// of `slot` off the lengths and the tokens seen of every layer. They are the last slots of each row, in either order, as
    /// long as they were appended after the last compression; of more, those that it has left stay. The next tokens overwrite
    /// them.
    ///
    /// Drafts that may be rejected are verified before a compression: record their append, verify, record what is taken back,
    /// and tell [`Schedule::append`](crate::Schedule::append) of the rest. A compression that keeps all of a row leaves it as
    /// it was; another, though, leaves heads and layers with different numbers of tokens that may go. After a rotation none
    /// counts as left by one. With cached scores by `KeyDiff` keys stay in their row's sum: take the norms of tokens that are
    /// there to stay.
    ///
    /// Semantically the same as [`CacheRow::truncate`](crate::reference::CacheRow::truncate).
    ///
    /// # Errors
    /// A slot that does not exist; nothing is recorded then.
    pub fn record_truncate(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32) -> Result<(), ArgumentError> {
        self.record_counts(pass, &self.plan.select.truncate, slot)
    }

    fn record_counts(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        pipeline: &wgpu::ComputePipeline,
        slot: u32,
    ) -> Result<(), ArgumentError> {
        check_slot(slot)?;
        let shape = &self.plan.shape;
        let rows = shape.num_layers * shape.rows_per_layer();
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &self.append_group, &[self.append_params_offset + PARAMS_STRIDE * slot]);
        pass.dispatch_workgroups(rows.div_ceil(WORKGROUP), 1, 1);
        Ok(())
    }

    /// Records the norms of tokens that have none yet, up to `max_new` a row (and what fills their last tile), into
    /// [`CacheState::key_norms`]: the one stage of a policy with [`Policy::cached_norms`](crate::Policy::cached_norms) that reads
    /// keys. A decode loop records it with its small number of new tokens, as late as just before a compression, and then
    /// [`Stages::FROM_NORMS`]; [`Bound::record`] alone looks for new tokens over the whole of `max_len`.
    ///
    /// Norms do not depend on RoPE; whoever changes a key in place sets `scored` back: see
    /// [`StateOffsets`](crate::StateOffsets).
    ///
    /// # Errors
    /// A plan without cached norms; `max_new` above the capacity. Nothing is recorded then.
    pub fn record_norms(&self, pass: &mut wgpu::ComputePass<'_>, max_new: u32) -> Result<(), ArgumentError> {
        self.check_max("max_new", max_new)?;
        if !self.plan.policy.cached_norms {
            return Err(ArgumentError::Unsupported { what: "record_norms without Policy::cached_norms" });
        }
        if max_new == 0 {
            return Ok(());
        }
        if let Some(pages) = &self.pages {
            pages.record_check(pass, true);
        }
        self.record_new_norms(pass, max_new);
        Ok(())
    }

    fn record_new_norms(&self, pass: &mut wgpu::ComputePass<'_>, max_new: u32) {
        self.record_score(pass, max_new, false);
        pass.set_pipeline(&self.plan.select.mark_scored);
        for window in &self.selects {
            pass.set_bind_group(0, &window.state_group, &[window.params_offset]);
            pass.dispatch_workgroups(window.num_rows.div_ceil(WORKGROUP), max_new.div_ceil(self.plan.tiles.plain), 1);
        }
    }

    fn check_max(&self, argument: &'static str, got: u32) -> Result<(), ArgumentError> {
        let capacity = self.plan.shape.capacity;
        if got > capacity {
            return Err(ArgumentError::TooLarge { argument, got: got.into(), limit: capacity.into() });
        }
        Ok(())
    }

    fn record_order(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32, fused: bool) {
        let Some(order) = &self.plan.select.order else { return };
        let (pipeline, tile) = order.of(fused, u64::from(max_len) * self.plan.scratch.num_rows);
        pass.set_pipeline(pipeline);
        for window in &self.selects {
            pass.set_bind_group(0, &window.order_group, &[window.order_params]);
            pass.dispatch_workgroups(max_len.div_ceil(tile), window.num_rows, 1);
        }
    }

    /// What comes between order keys and the selection: segments, then pools.
    fn record_budgets(&self, pass: &mut wgpu::ComputePass<'_>, window: &SelectWindow, max_len: u32) {
        if let Some(reserve) = &self.plan.select.reserve {
            pass.set_pipeline(reserve);
            pass.set_bind_group(0, &window.reserve_group, &[window.params_offset]);
            pass.dispatch_workgroups(MAX_SEGMENTS, window.num_rows, 1);
        }
        if let Some([count, pick]) = &self.plan.select.pool {
            for ix in 0..POOL_PASSES {
                pass.set_bind_group(0, &window.pool_group, &[window.pool_params + PARAMS_STRIDE * ix]);
                pass.set_pipeline(count);
                pass.dispatch_workgroups(max_len.div_ceil(SELECT_TILE), window.num_rows, 1);
                pass.set_pipeline(pick);
                pass.dispatch_workgroups(window.num_rows / self.plan.shape.num_kv_heads, 1, 1);
            }
        }
    }

    pub(crate) fn path(&self, max_len: u32) -> Path {
        let sort_len = self.plan.kernels.capabilities.sort_len;
        match self.plan.policy.selector {
            Selector::Bitonic if max_len <= sort_len => Path::BitonicRow,
            Selector::Bitonic => Path::BitonicLong,
            Selector::Auto | Selector::Radix => {
                if max_len <= self.plan.kernels.capabilities.longest_row() {
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
            window.choose_arrays(pass);
            window.score.record(pass, max_len, window.num_rows, (fused, tiles));
        }
        for layer in &self.banded {
            layer.record_score(pass, max_len, (fused, self.plan.policy.cached_norms));
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
        if matches!(path, Path::BitonicRow | Path::BitonicLong) {
            self.record_bitonic(pass, window, max_len, path);
            return;
        }
        pass.set_bind_group(0, &window.group, &[window.params_offset]);
        for (pipeline, workgroups, scouts) in self.radix_dispatches(max_len, window.num_rows, fused) {
            pass.set_pipeline(pipeline);
            pass.dispatch_workgroups(workgroups, scouts + window.num_rows, 1);
        }
    }

    /// The state's update and the moves share no buffer that either writes, so they overlap. The update goes first, since
    /// after the moves it would begin when the last of them end.
    fn record_compact(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        self.record_finish(pass, max_len);
        self.record_moves(pass, max_len);
        if let Some(pages) = &self.pages {
            pages.record_free(pass);
        }
    }

    /// Workgroups of a row of the state's update, which goes round for what they do not cover: no more than fill the card.
    pub(crate) fn finish_workgroups(&self, max_len: u32, num_rows: u32) -> u32 {
        let slots = self.plan.max_budget(max_len).div_ceil(WORKGROUP);
        slots.min(FINISH_WORKGROUPS / num_rows).clamp(1, self.plan.kernels.capabilities.max_workgroups)
    }

    fn record_finish(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        pass.set_pipeline(&self.plan.select.finish);
        for window in &self.selects {
            pass.set_bind_group(0, &window.state_group, &[window.params_offset]);
            pass.dispatch_workgroups(self.finish_workgroups(max_len, window.num_rows), window.num_rows, 1);
        }
    }

    /// The dispatches of the radix selector for so many rows: pipelines, workgroups a row, and rows of the grid that are
    /// scouts'.
    pub(crate) fn radix_dispatches(
        &self,
        max_len: u32,
        num_rows: u32,
        fused: bool,
    ) -> impl Iterator<Item = (&wgpu::ComputePipeline, u32, u32)> {
        let (select, capabilities) = (&self.plan.select, &self.plan.kernels.capabilities);
        if self.path(max_len) == Path::RadixRow {
            let row = usize::from(max_len > ROW_TOKENS * WORKGROUP) + usize::from(max_len > 2 * ROW_TOKENS * WORKGROUP);
            let pairs = select.radix_pairs.as_ref().filter(|_| max_len > capabilities.longest_of_eights());
            let row = (pairs.unwrap_or(&select.radix_rows[row]), 1, capabilities.scouts_of_rows());
            return [Some(row), None, None, None].into_iter().flatten();
        }
        let tiles = max_len.div_ceil(SELECT_TILE);
        let scouts = capabilities.scouts_of_parts();
        let count = (!fused).then_some((&select.count_digits, tiles, 0));
        let long = select.long_of(capabilities.serial, u64::from(num_rows) * u64::from(tiles));
        let workgroups = tiles.div_ceil(long.each);
        let settled = select.settle.as_ref().zip(long.emit_settled.as_ref()).filter(|_| tiles > MANY_TILES);
        let emit = settled.map_or((&long.emit, workgroups, scouts), |(_, emit)| (emit, workgroups, 0));
        let settle = settled.map(|(settle, _)| (settle, 1, 0));
        [count, Some((&long.collect, workgroups, scouts)), settle, Some(emit)].into_iter().flatten()
    }
}
