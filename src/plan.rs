//! A plan: shape and policy checked, scratch sized, pipelines built.

use std::sync::Arc;

use crate::bound::Bound;
use crate::criterion::{ExternalScore, Score};
use crate::device::Capabilities;
use crate::error::{ArgumentError, BuildError};
use crate::kernel::{Checks, Kernels};
use crate::moves::MovedRow;
use crate::pages::{PageShape, PagedKvView, Views};
use crate::policy::{BudgetRule, Policy, Rounding, Selector};
use crate::reference::key_diff::sum_tile;
use crate::score_tiles::{ScoreTiles, values_tile};
use crate::select::SelectPipelines;
use crate::shape::KvShape;
use crate::state::CacheState;
use crate::view::{KvView, TensorView};
use crate::workspace::{ScratchLayout, Workspace};

/// Invocations of a workgroup, unless it owns a whole row.
pub(crate) const WORKGROUP: u32 = 256;
/// Tokens of a tile whose keys an invocation of the radix selector holds in registers; it may hold two tiles'.
pub(crate) const ROW_TOKENS: u32 = 8;
/// Tokens that a workgroup of the long-row dispatches covers.
pub(crate) const SELECT_TILE: u32 = ROW_TOKENS * WORKGROUP;

/// Geometry, policy and pipelines. Cheap to clone; `Send + Sync`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) inner: Arc<PlanInner>,
}

#[derive(Debug)]
pub(crate) struct PlanInner {
    pub kernels: Arc<Kernels>,
    pub shape: KvShape,
    pub policy: Policy,
    /// Of every head of every compressed layer.
    pub rules: Vec<BudgetRule>,
    pub layers: Vec<u32>,
    pub scratch: ScratchLayout,
    pub select: SelectPipelines,
    pub tiles: ScoreTiles,
}

impl Plan {
    pub(crate) fn new(
        kernels: &Arc<Kernels>,
        shape: &KvShape,
        policy: &Policy,
        checks: &mut Checks,
    ) -> Result<Self, BuildError> {
        shape.check()?;
        policy.check(shape)?;
        if shape.keys.dtype.is_quantised() && matches!(policy.score_in_use(), Score::KeyDiff | Score::Centroid) {
            return Err(
                ArgumentError::Unsupported { what: "quantised keys with Score::KeyDiff or Score::Centroid" }.into()
            );
        }
        let layers = policy.compressed_layers(shape.num_layers);
        let rows = layers.iter().flat_map(|&layer| (0..shape.num_kv_heads).map(move |head| (layer, head)));
        let rules = rows.map(|(layer, head)| policy.rule_of(layer, head)).collect::<Result<_, _>>()?;
        let num_rows = layers.len() as u64 * u64::from(shape.rows_per_layer());
        let scratch = ScratchLayout::new(shape, policy, num_rows, &kernels.capabilities);
        if !layers.is_empty() {
            scratch.check(if policy.pool.is_some() { shape.num_kv_heads } else { 1 }, &kernels.capabilities)?;
        }
        let tiles = ScoreTiles::new(shape, policy, kernels.capabilities.serial);
        check_grid(shape, policy, &tiles, &kernels.capabilities)?;
        let inner = PlanInner {
            kernels: Arc::clone(kernels),
            shape: *shape,
            policy: policy.clone(),
            rules,
            layers,
            scratch,
            select: SelectPipelines::new(kernels, policy, (num_rows, shape.capacity), &tiles, checks),
            tiles,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The shape that was planned for.
    #[must_use]
    pub fn shape(&self) -> &KvShape {
        &self.inner.shape
    }

    /// The policy that was planned for.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    /// Bytes of scratch that a [`Workspace`] of this plan takes.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.inner.scratch.total_bytes()
    }

    /// Most tokens that any compressed row of `len` tokens keeps, `num_protected` of them being protected; without
    /// overrides, [`Budget::MaxNorm`](crate::Budget::MaxNorm) and pools what each keeps. The GPU computes the same.
    #[must_use]
    pub fn budget(&self, len: u32, num_protected: u32) -> u32 {
        if self.inner.policy.pool.is_some() {
            return len;
        }
        self.inner.rules.iter().map(|rule| rule.tokens(len, num_protected, len)).max().unwrap_or(len)
    }

    /// Scratch for this plan.
    ///
    /// # Errors
    /// [`BuildError::Limit`] where an array exceeds the largest buffer; [`BuildError::OutOfMemory`].
    pub fn create_workspace(&self) -> Result<Workspace, BuildError> {
        let mut checks = Checks::default();
        let workspace = Workspace::new(&self.inner.kernels, self.inner.scratch, &mut checks)?;
        checks.finish()?;
        Ok(workspace)
    }

    /// As [`Plan::create_workspace`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::create_workspace`].
    pub async fn create_workspace_async(&self) -> Result<Workspace, BuildError> {
        let mut checks = Checks::default();
        let workspace = Workspace::new(&self.inner.kernels, self.inner.scratch, &mut checks)?;
        checks.finish_async().await?;
        Ok(workspace)
    }

    /// An empty cache state of this plan's shape: all lengths 0, all sequences active.
    ///
    /// # Errors
    /// As [`Plan::create_workspace`].
    pub fn create_state(&self) -> Result<CacheState, BuildError> {
        let mut checks = Checks::default();
        let state = CacheState::new(&self.inner.kernels, &self.inner.shape, &self.inner.policy, &mut checks)?;
        checks.finish()?;
        Ok(state)
    }

    /// As [`Plan::create_state`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::create_workspace`].
    pub async fn create_state_async(&self) -> Result<CacheState, BuildError> {
        let mut checks = Checks::default();
        let state = CacheState::new(&self.inner.kernels, &self.inner.shape, &self.inner.policy, &mut checks)?;
        checks.finish_async().await?;
        Ok(state)
    }

    /// Binds the buffers of every layer (one view a layer; those of skipped layers are not looked at), once per set of
    /// buffers.
    ///
    /// # Errors
    /// [`BuildError::Argument`] for each way in which a view, state or workspace does not fit; nothing is changed then.
    pub fn bind(
        &self,
        device: &wgpu::Device,
        views: &[KvView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        self.bind_with_scores(device, views, &[], state, workspace)
    }

    /// As [`Plan::bind`] for a policy of [`Score::External`](crate::Score::External), with the caller's scores: one view a
    /// layer, of one 32-bit word a token (strides in words); those of skipped layers are not looked at. With a stride of 0 from
    /// head to head all heads have the same scores, and keep the same tokens where budgets are the same. Buffers with usage
    /// `STORAGE`, declared `read_write` but only read; they may be shared, but not overlap keys, values or state. They are
    /// read where the score stage is recorded, so that shaders may write them before it in the same pass.
    ///
    /// # Errors
    /// As [`Plan::bind`]; a number of views other than one a layer, or than none for another policy.
    pub fn bind_with_scores(
        &self,
        device: &wgpu::Device,
        views: &[KvView<'_>],
        scores: &[TensorView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        let mut checks = Checks::default();
        let views = Views::strided(views, scores);
        let bound = Bound::new(self, device, &views, (state, workspace), &mut checks)?;
        self.inner.kernels.finish(checks)?;
        Ok(bound)
    }

    /// Binds a paged cache: pools of pages, and a table that says which of them a sequence has. Kept tokens move to the
    /// front of the sequence's pages; [`Bound::freed_pages`] says which pages are free then.
    ///
    /// Semantically the same as [`Plan::bind`] of a contiguous cache with the same tokens. In addition
    /// [`reference::pages`](crate::reference::pages): before it reads a key, a compression checks the tables on the GPU. A
    /// sequence with an id outside the pool, an id twice, the sentinel, or a page after its first writable one
    /// ([`CacheState::set_first_writable`]) that another active sequence has as well, is left as it is in the layers that share
    /// the table, with [`Status::BAD_PAGE`](crate::Status::BAD_PAGE); others are compressed. Compressed layers with one that is
    /// left whole between them are checked apart, each group by its own longest row. Each layer has pools of its own, which
    /// overlap no other's; a table may be shared, or each layer have one.
    ///
    /// A page is freed when every head of the sequence is done with it. Budgets that are the same for all heads make
    /// their lengths the same, unless protection raises some; budgets that differ by head leave every page that the
    /// longest head needs, so that what the other heads drop there is saved in attention and not in memory.
    ///
    /// # Errors
    /// As [`Plan::bind`]; a page size, capacity, pool or table that does not fit.
    pub fn bind_paged(
        &self,
        device: &wgpu::Device,
        pages: &PageShape,
        views: &[PagedKvView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        self.bind_paged_with_scores(device, pages, views, &[], state, workspace)
    }

    /// As [`Plan::bind_paged`], with the caller's scores as [`Plan::bind_with_scores`] takes them: `[sequence, head, token]`, by
    /// strides and not by pages.
    ///
    /// # Errors
    /// As [`Plan::bind_paged`] and [`Plan::bind_with_scores`]; scores of a layer that exceed a binding.
    pub fn bind_paged_with_scores(
        &self,
        device: &wgpu::Device,
        pages: &PageShape,
        views: &[PagedKvView<'_>],
        scores: &[TensorView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        let mut checks = Checks::default();
        let bound = Bound::new(self, device, &Views::paged(pages, views, scores), (state, workspace), &mut checks)?;
        self.inner.kernels.finish(checks)?;
        Ok(bound)
    }

    /// As [`Plan::bind_paged_with_scores`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::bind_paged_with_scores`].
    pub async fn bind_paged_with_scores_async(
        &self,
        device: &wgpu::Device,
        pages: &PageShape,
        views: &[PagedKvView<'_>],
        scores: &[TensorView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        let mut checks = Checks::default();
        let bound = Bound::new(self, device, &Views::paged(pages, views, scores), (state, workspace), &mut checks)?;
        self.inner.kernels.finish_async(checks).await?;
        Ok(bound)
    }

    /// As [`Plan::bind_paged`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::bind_paged`].
    pub async fn bind_paged_async(
        &self,
        device: &wgpu::Device,
        pages: &PageShape,
        views: &[PagedKvView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        self.bind_paged_with_scores_async(device, pages, views, &[], state, workspace).await
    }

    /// As [`Plan::bind`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::bind`].
    pub async fn bind_async(
        &self,
        device: &wgpu::Device,
        views: &[KvView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        self.bind_with_scores_async(device, views, &[], state, workspace).await
    }

    /// As [`Plan::bind_with_scores`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::bind_with_scores`].
    pub async fn bind_with_scores_async(
        &self,
        device: &wgpu::Device,
        views: &[KvView<'_>],
        scores: &[TensorView<'_>],
        state: &CacheState,
        workspace: &Workspace,
    ) -> Result<Bound, BuildError> {
        let mut checks = Checks::default();
        let views = Views::strided(views, scores);
        let bound = Bound::new(self, device, &views, (state, workspace), &mut checks)?;
        self.inner.kernels.finish_async(checks).await?;
        Ok(bound)
    }
}

impl PlanInner {
    /// Most tokens that a row of at most `max_len` keeps, unless a prefix or order keys of 0 raise its budget: what this sizes
    /// goes round.
    pub fn max_budget(&self, max_len: u32) -> u32 {
        if self.policy.pool.is_some() {
            return max_len;
        }
        let asked = |rule: &BudgetRule| rule.asked(max_len, max_len).max(rule.min_len);
        let asked = self.rules.iter().map(asked).max().unwrap_or(0);
        asked.max(self.max_protected(max_len)).max(1).min(max_len)
    }

    /// The rules of compressed rows, each once; where there are none, one that keeps all.
    pub fn distinct_rules(&self) -> Vec<BudgetRule> {
        let mut rules: Vec<BudgetRule> = Vec::new();
        for rule in &self.rules {
            if !rules.contains(rule) {
                rules.push(*rule);
            }
        }
        if rules.is_empty() {
            rules.push(BudgetRule::ratio(1.0, Rounding::Ceil));
        }
        rules
    }

    /// Whether what a row keeps is known on the GPU alone.
    pub fn kept_is_unknown(&self) -> bool {
        let by_caller = self.policy.score_in_use() == Score::External(ExternalScore::OrderKeys);
        self.depends_on_keys() || self.policy.segments || by_caller
    }

    /// Most rows that `Fill` moves in a row of at most `max_len`, unless order keys of 0 raise its budget, which the caller's and
    /// those of tokens without a norm may be: a dispatch goes round for more. min(budget, len - budget) does not fall with the
    /// length but for rounding, and a raised budget moves no more than it keeps.
    pub fn max_moved(&self, max_len: u32) -> u32 {
        let half = max_len / 2 + 1;
        if self.depends_on_keys() {
            return half;
        }
        let by_budget = |rule: &BudgetRule| {
            let budget = BudgetRule { min_len: 0, ..*rule }.asked(max_len, 0).min(max_len);
            budget.min(max_len - budget) + 1
        };
        let by_budget = self.rules.iter().map(by_budget).max().unwrap_or(0);
        let by_protection = self.max_protected(max_len).max(1);
        by_budget.max(by_protection).min(half)
    }

    /// Whether what a row keeps is known only from its keys.
    pub fn depends_on_keys(&self) -> bool {
        self.policy.pool.is_some() || self.policy.has_norm_limit()
    }

    fn max_protected(&self, max_len: u32) -> u32 {
        if self.policy.segments {
            return max_len;
        }
        self.policy.sinks.saturating_add(self.policy.recent).min(max_len)
    }
}

/// The grids of the longest rows must fit the device.
fn check_grid(
    shape: &KvShape,
    policy: &Policy,
    tiles: &ScoreTiles,
    capabilities: &Capabilities,
) -> Result<(), BuildError> {
    let (serial, capacity) = (capabilities.serial, shape.capacity);
    let specs = [&shape.keys, &shape.values];
    // How rows are reached is known when they are bound.
    let moved = specs.into_iter().flat_map(|spec| [true, false].map(|vec4| MovedRow::new(spec, vec4, serial)));
    let lanes = moved.map(|row| row.lanes).max().unwrap_or(1);
    let unit = WORKGROUP / lanes * 4;
    let scored = capacity.div_ceil(tiles.plain) + capabilities.scouts_of_parts();
    let before = match policy.score_in_use() {
        Score::KeyDiff | Score::Centroid => capacity.div_ceil(sum_tile(&shape.keys)),
        Score::ValueKeyRatio => capacity.div_ceil(values_tile(&shape.values)),
        Score::KeyNorm | Score::External(_) => 0,
    };
    let sorts = policy.selector == Selector::Bitonic && capacity > capabilities.sort_len;
    let sorted = if sorts { capacity.next_power_of_two() / 2 / WORKGROUP } else { 0 };
    let appended = (shape.num_layers * shape.rows_per_layer()).div_ceil(WORKGROUP);
    let moved = (capacity / 2 + 1).div_ceil(unit);
    capabilities.check_grid([scored, before, sorted, appended, moved].into_iter().max().unwrap_or(0).into())
}
