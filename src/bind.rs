//! The binding of a plan: views checked, bind groups and pipelines made.

use std::sync::Arc;

use crate::bound::{Bound, LayerWindow, SelectWindow};
use crate::draft::{Builder, INFOS_A_SLOT, LayerDraft, RowRange, SelectDraft, word};
use crate::error::BuildError;
use crate::kernel::{Checks, Kernels};
use crate::layout::LayoutKind;
use crate::module::Access;
use crate::pages::Views;
use crate::params::{AppendParams, CompactParams, OrderParams, RowRule, TopKParams};
use crate::params_block::ParamsBlock;
use crate::plan::Plan;
use crate::policy::BudgetRule;
use crate::scouts::MOST_SCOUT_ROWS;
use crate::state::CacheState;
use crate::windows::{BoundRange, WindowLimits};
use crate::workspace::{ROW_INFO_WORDS, Workspace};

impl Bound {
    pub(crate) fn new(
        plan: &Plan,
        device: &wgpu::Device,
        views: &Views<'_>,
        (state, workspace): (&CacheState, &Workspace),
        checks: &mut Checks,
    ) -> Result<Self, BuildError> {
        let inner = &plan.inner;
        let builder = Builder { plan: inner, device, state, workspace, pages: views.pages };
        let layers = builder.check(views)?;
        let mut params = ParamsBlock::default();
        let runs = builder.layer_runs(&layers, views);
        let drafts: Vec<_> = runs.iter().flat_map(|run| builder.draft_layers(run, &mut params)).collect();
        let band_drafts: Vec<_> = layers.iter().flat_map(|l| builder.draft_bands(l, &mut params)).collect();
        let table_drafts = builder.draft_tables(&layers, views, &mut params);
        let select_drafts = builder.draft_selects(&mut params);
        let append_params_offset = builder.push_append_params(&mut params);
        let params = params.into_buffer(device, "keynorm.params", wgpu::BufferUsages::UNIFORM, checks);
        let rules = builder.rule_table(checks);
        let pages = builder.bound_pages(&table_drafts, &params, checks)?;
        let layers = drafts.iter().map(|d| builder.layer_window(d, &params, (&rules, views), checks)).collect();
        let banded = band_drafts.iter().map(|d| builder.banded_layer(d, &params, views, checks)).collect();
        let selects = select_drafts.iter().map(|d| builder.select_window(d, &params, &rules, checks)).collect();
        let append_group = builder.append_group(&params, checks);
        Ok(Self {
            plan: Arc::clone(inner),
            layers,
            banded,
            selects,
            pages,
            state: state.clone(),
            append_group,
            append_params_offset,
        })
    }
}

/// Where the scratch of some rows is bound.
pub(crate) struct RowScratch<'a> {
    pub order_keys: wgpu::BindingResource<'a>,
    pub lists: wgpu::BindingResource<'a>,
    pub infos: wgpu::BindingResource<'a>,
    pub histogram: wgpu::BindingResource<'a>,
}

impl Builder<'_> {
    pub(crate) fn kernels(&self) -> &Kernels {
        &self.plan.kernels
    }

    pub(crate) fn limits(&self) -> WindowLimits {
        let c = &self.kernels().capabilities;
        let in_grid = c.max_workgroups.saturating_sub(MOST_SCOUT_ROWS).max(1);
        WindowLimits {
            max_binding_bytes: c.max_binding_bytes,
            offset_alignment: c.offset_alignment,
            max_rows: in_grid.min(self.plan.scratch.max_rows(c.max_binding_bytes)),
        }
    }

    /// The budgets of the compressed layers' heads, as the select stage reads them.
    fn rule_table(&self, checks: &mut Checks) -> wgpu::Buffer {
        let entry = |rule: &BudgetRule| RowRule {
            budget_mode: rule.mode,
            ratio_low: word(rule.ratio),
            ratio_high: word(rule.ratio >> 32),
            tokens: rule.tokens,
            key_limit: rule.key_limit,
            min_len: rule.min_len,
            pooled: u32::from(self.plan.policy.pool.is_some()),
            pad0: 0,
        };
        let entries: Vec<RowRule> = self.plan.rules.iter().map(entry).collect();
        let bytes = bytemuck::cast_slice(&entries).to_vec();
        ParamsBlock(bytes).into_buffer(self.device, "keynorm.rules", wgpu::BufferUsages::STORAGE, checks)
    }

    pub(crate) fn layer_window(
        &self,
        draft: &LayerDraft,
        params: &wgpu::Buffer,
        (rules, views): (&wgpu::Buffer, &Views<'_>),
        checks: &mut Checks,
    ) -> LayerWindow {
        let view = &views.layers[draft.rows.layer as usize];
        let table = views.tables.get(draft.rows.layer as usize).zip(draft.table);
        let table = table.map(|(table, range)| range_binding(table.buffer, range));
        let w = &draft.window;
        let arrays = self.arrays_group(&draft.array, views, checks);
        let keys = arrays.is_none().then(|| range_binding(view.keys.buffer, w.keys));
        let compact_params = params_binding::<CompactParams>(params, 0);
        let (lists, infos) = self.moves_bindings(&draft.rows);
        let values = range_binding(view.values.buffer, w.values);
        let is_joined = draft.values_access == Access::Joined;
        let values = (!is_joined && arrays.is_none()).then_some(values);
        let kind = LayoutKind::compact(is_joined, draft.tokens);
        let moves = self.moves(draft, checks);
        let starts = self.starts(&moves, w.num_rows, checks);
        let rest = [lists, infos, starts.as_entire_binding()];
        let bindings: Vec<_> =
            [compact_params].into_iter().chain(keys).chain(values).chain(rest).chain(table).collect();
        let compact_group = self.group(kind, &bindings, checks);
        LayerWindow {
            num_rows: w.num_rows,
            score: self.score_stage(draft, params, views, checks),
            arrays,
            compact_group,
            compact_params: draft.compact_params,
            moves,
            row: self.row_stage(draft, params, (rules, views), checks),
        }
    }

    /// The constant of the kernels that find tokens by a table.
    pub(crate) fn page_size(&self) -> Option<(&'static str, f64)> {
        self.pages.map(|pages| ("PAGE_SIZE", f64::from(pages.page_size)))
    }

    /// Lists and row infos of rows.
    pub(crate) fn moves_bindings(&self, rows: &RowRange) -> (wgpu::BindingResource<'_>, wgpu::BindingResource<'_>) {
        let scratch = self.row_scratch(rows.first_scratch_row, rows.num_rows);
        (scratch.lists, scratch.infos)
    }

    pub(crate) fn row_scratch(&self, first_row: u64, num_rows: u32) -> RowScratch<'_> {
        let (strides, workspace) = (&self.plan.scratch, self.workspace);
        let rows = |buffer, stride| row_binding(buffer, first_row, num_rows, stride);
        RowScratch {
            order_keys: rows(&workspace.order_keys, strides.order_stride),
            lists: rows(&workspace.lists, strides.lists_stride),
            infos: info_binding(&workspace.row_infos, first_row, num_rows),
            histogram: rows(&workspace.histogram, strides.histogram_stride),
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
        let rows = |buffer, stride| row_binding(buffer, draft.first_scratch_row, draft.num_rows, stride);
        let mut bindings = self.select_bindings(draft, params, table).to_vec();
        let group = self.group(LayoutKind::TopK, &bindings, checks);
        // A plan without cached norms may share the state of one that has them.
        let norms = if self.state.key_norms().is_some() {
            words_binding(self.state.norms_or_dummy(), draft.first_position, draft.position_words)
        } else {
            self.state.norms_or_dummy().as_entire_binding()
        };
        let copies = rows(&self.workspace.norm_copies, scratch.copies_stride);
        let status = self.state.status().as_entire_binding();
        let [top_k, order_keys, meta, positions, lists, infos, histogram, rules] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|i| &bindings[i]);
        let state_bindings = [top_k, meta, positions, lists, infos, &status, &norms, &copies].map(Clone::clone);
        let state_group = self.group(LayoutKind::State, &state_bindings, checks);
        let order_group = self.plan.policy.cached_norms.then(|| {
            let params = params_binding::<OrderParams>(params, 0);
            let bindings =
                [&params, meta, positions, &norms, order_keys, &copies, &status, histogram].map(Clone::clone);
            self.group(LayoutKind::Order, &bindings, checks)
        });
        let reserve_group = self.plan.policy.segments.then(|| {
            let bindings = [top_k, order_keys, meta, positions].map(Clone::clone);
            self.group(LayoutKind::Reserve, &bindings, checks)
        });
        let pool_group = self.plan.policy.pool.map(|_| {
            let counts = rows(&self.workspace.pool_counts, scratch.pool_counts_stride);
            let pool_rows = rows(&self.workspace.pool_rows, scratch.pool_row_words);
            let bindings = [top_k, order_keys, meta, infos, &counts, rules, &pool_rows].map(Clone::clone);
            self.group(LayoutKind::Pool, &bindings, checks)
        });
        let bitonic_group = self.plan.select.bitonic.is_some().then(|| {
            bindings.push(if scratch.sorted_stride > 0 {
                rows(&self.workspace.sorted, scratch.sorted_stride)
            } else {
                self.workspace.sorted.as_entire_binding()
            });
            self.group(LayoutKind::Bitonic, &bindings, checks)
        });
        SelectWindow {
            num_rows: draft.num_rows,
            group,
            state_group,
            bitonic_group,
            order_group,
            reserve_group,
            pool_group,
            params_offset: draft.params_offset,
            pool_params: draft.pool_params,
            order_params: draft.order_params,
        }
    }

    fn select_bindings<'a>(
        &'a self,
        draft: &SelectDraft,
        params: &'a wgpu::Buffer,
        table: &'a wgpu::Buffer,
    ) -> [wgpu::BindingResource<'a>; 8] {
        let scratch = self.row_scratch(draft.first_scratch_row, draft.num_rows);
        [
            params_binding::<TopKParams>(params, 0),
            scratch.order_keys,
            self.state.meta().as_entire_binding(),
            words_binding(self.state.positions(), draft.first_position, draft.position_words),
            scratch.lists,
            scratch.infos,
            scratch.histogram,
            table.as_entire_binding(),
        ]
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

    pub(crate) fn group(
        &self,
        kind: LayoutKind,
        resources: &[wgpu::BindingResource<'_>],
        checks: &mut Checks,
    ) -> wgpu::BindGroup {
        bind_group(self.kernels(), kind, resources, checks)
    }
}

pub(crate) fn bind_group(
    kernels: &Kernels,
    kind: LayoutKind,
    resources: &[wgpu::BindingResource<'_>],
    checks: &mut Checks,
) -> wgpu::BindGroup {
    let entries: Vec<_> = kind
        .bindings()
        .zip(resources)
        .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource: resource.clone() })
        .collect();
    checks.guard(&kernels.device, "keynorm bind group", || {
        kernels.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("keynorm"),
            layout: kernels.bind_group_layout(kind),
            entries: &entries,
        })
    })
}

pub(crate) fn params_binding<T>(buffer: &wgpu::Buffer, offset: u32) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer,
        offset: offset.into(),
        size: wgpu::BufferSize::new(size_of::<T>() as u64),
    })
}

pub(crate) fn range_binding(buffer: &wgpu::Buffer, range: BoundRange) -> wgpu::BindingResource<'_> {
    let size = wgpu::BufferSize::new(range.size);
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: range.start, size })
}

pub(crate) fn words_binding(buffer: &wgpu::Buffer, first: u64, count: u64) -> wgpu::BindingResource<'_> {
    let start = first * 4;
    range_binding(buffer, BoundRange { start, size: (count * 4).min(buffer.size() - start) })
}

/// Rows of a scratch array, whose stride is a multiple of 64 words; the whole dummy where the array is not used.
pub(crate) fn row_binding(
    buffer: &wgpu::Buffer,
    first_row: u64,
    num_rows: u32,
    stride: u32,
) -> wgpu::BindingResource<'_> {
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
