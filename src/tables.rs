//! The tables of a paged cache, bound: checked before a compression, read for what it frees after it.

use crate::bind::{params_binding, range_binding};
use crate::draft::{Builder, CheckedLayer, word};
use crate::error::BuildError;
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::Module;
use crate::pages::{FreedPages, HEADER_WORDS, PageShape, PageTable, Views};
use crate::params::{PageParams, StateLayout};
use crate::params_block::ParamsBlock;
use crate::stages::Stages;
use crate::state::StateOffsets;
use crate::windows::BoundRange;

/// Bound layers that share a table.
#[derive(Debug)]
struct TableGroup {
    group: wgpu::BindGroup,
    params: u32,
    num_layers: u32,
}

/// The tables of a bound paged cache.
#[derive(Debug)]
pub(crate) struct BoundPages {
    groups: Vec<TableGroup>,
    /// mark, verify, free, clear.
    pipelines: [wgpu::ComputePipeline; 4],
    batch_size: u32,
    mark_workgroups: u32,
    pub freed: FreedPages,
}

impl BoundPages {
    /// The check, before anything reads or writes by a table.
    /// `clear`: nothing frees in the same record, so that the marks must be cleared here.
    pub(crate) fn record_check(&self, pass: &mut wgpu::ComputePass<'_>, clear: bool) {
        let grids = [(self.batch_size, self.mark_workgroups), (self.batch_size, 1)];
        for (pipeline, (x, y)) in self.pipelines[..2].iter().zip(grids) {
            pass.set_pipeline(pipeline);
            for group in &self.groups {
                pass.set_bind_group(0, &group.group, &[group.params]);
                pass.dispatch_workgroups(x, y, 1);
            }
        }
        if clear {
            self.record_last(pass, &self.pipelines[3]);
        }
    }

    pub(crate) fn record_free(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.record_last(pass, &self.pipelines[2]);
    }

    fn record_last(&self, pass: &mut wgpu::ComputePass<'_>, pipeline: &wgpu::ComputePipeline) {
        pass.set_pipeline(pipeline);
        for group in &self.groups {
            pass.set_bind_group(0, &group.group, &[group.params]);
            pass.dispatch_workgroups(self.batch_size, group.num_layers, 1);
        }
    }
}

/// A group's layers, before anything is made.
pub(crate) struct TableDraft<'a> {
    table: PageTable<'a>,
    range: BoundRange,
    num_layers: u32,
    params: u32,
    marks_start: u64,
}

/// Bytes of the marks of a table's pages, aligned for a binding.
fn marks_bytes(pages: &PageShape) -> u64 {
    (u64::from(pages.num_pages) * 4).next_multiple_of(256)
}

impl Builder<'_> {
    /// The state as kernels see it: of a paged cache, tables have a say in which sequences take part.
    pub(crate) fn state_layout(&self, first_position: u64) -> StateLayout {
        match &self.pages {
            Some(pages) => StateLayout::paged(&self.plan.shape, first_position, pages.page_size),
            None => StateLayout::new(&self.plan.shape, first_position),
        }
    }

    /// Word of a layer's table in its binding, and words from one sequence to the next.
    pub(crate) fn table_words(&self, layer: &CheckedLayer) -> (u32, u32) {
        layer.table.map_or((0, 0), |table| {
            let range = BoundRange::aligned((table.offset, table.end()), self.limits());
            (word((table.offset - range.start) / 4), word(table.batch_stride / 4))
        })
    }

    /// Neighbouring layers with one table, of those that are compressed.
    pub(crate) fn draft_tables<'v>(
        &self,
        layers: &[CheckedLayer],
        views: &Views<'v>,
        params: &mut ParamsBlock,
    ) -> Vec<TableDraft<'v>> {
        let Some(pages) = self.pages else { return Vec::new() };
        let mut drafts: Vec<TableDraft<'v>> = Vec::new();
        let mut first = 0;
        for ix in 0..layers.len() {
            let view = |ix: usize| views.tables[layers[ix].layer as usize];
            let continues = layers.get(ix + 1).is_some_and(|next| {
                let (a, b) = (view(ix), view(ix + 1));
                next.layer == layers[ix].layer + 1
                    && (a.buffer, a.offset_bytes, a.stride) == (b.buffer, b.offset_bytes, b.stride)
            });
            if continues {
                continue;
            }
            let group = &layers[first..=ix];
            let lattice = layers[first].table.map_or((0, 0), |t| (t.offset, t.end()));
            let marks_start = marks_bytes(&pages) * drafts.len() as u64;
            drafts.push(TableDraft {
                table: view(first),
                range: BoundRange::aligned(lattice, self.limits()),
                num_layers: word(group.len() as u64),
                params: self.push_page_params(&pages, group, params),
                marks_start,
            });
            first = ix + 1;
        }
        drafts
    }

    fn push_page_params(&self, pages: &PageShape, group: &[CheckedLayer], params: &mut ParamsBlock) -> u32 {
        let shape = &self.plan.shape;
        let (table_base, table_stride) = self.table_words(&group[0]);
        params.push(&PageParams {
            state: StateLayout::new(shape, 0),
            first_layer: group[0].layer,
            num_layers: word(group.len() as u64),
            num_pages: pages.num_pages,
            first_page: u32::from(pages.has_sentinel),
            table_base,
            table_stride,
            page_size: pages.page_size,
            freed_stride: HEADER_WORDS + shape.capacity / pages.page_size,
            skipped_base: StateOffsets::of(shape).skipped,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        })
    }

    pub(crate) fn bound_pages(
        &self,
        drafts: &[TableDraft<'_>],
        params: &wgpu::Buffer,
        checks: &mut Checks,
    ) -> Result<Option<BoundPages>, BuildError> {
        let Some(pages) = self.pages else { return Ok(None) };
        let shape = &self.plan.shape;
        let stride = HEADER_WORDS + shape.capacity / pages.page_size;
        let freed_words = u64::from(shape.num_layers) * u64::from(shape.batch_size) * u64::from(stride);
        let freed = self.page_buffer("keynorm.freed_pages", freed_words * 4, freed_words * 4, checks)?;
        let marks_size = marks_bytes(&pages);
        let marks =
            self.page_buffer("keynorm.page_marks", marks_size * (drafts.len() as u64).max(1), marks_size, checks)?;
        let capabilities = &self.kernels().capabilities;
        let most_layers = drafts.iter().map(|draft| draft.num_layers).max().unwrap_or(0);
        let mark_workgroups = (shape.capacity / pages.page_size).div_ceil(capabilities.row_workgroup);
        capabilities.check_grid(shape.batch_size.max(most_layers).max(mark_workgroups).into())?;
        let wide = capabilities.row_workgroup;
        let pipelines = ["mark", "verify", "free", "clear"]
            .map(|entry| self.kernels().pipeline(Module::Pages, entry, &[("WG_SIZE", f64::from(wide))], checks));
        let groups = drafts.iter().map(|draft| TableGroup {
            group: self.group(
                LayoutKind::Pages,
                &[
                    params_binding::<PageParams>(params, 0),
                    range_binding(draft.table.buffer, draft.range),
                    self.state.meta().as_entire_binding(),
                    range_binding(&marks, BoundRange { start: draft.marks_start, size: marks_size }),
                    self.state.status().as_entire_binding(),
                    freed.as_entire_binding(),
                ],
                checks,
            ),
            params: draft.params,
            num_layers: draft.num_layers,
        });
        Ok(Some(BoundPages {
            groups: groups.collect(),
            pipelines,
            batch_size: shape.batch_size,
            mark_workgroups,
            freed: FreedPages { buffer: freed, stride, num_layers: shape.num_layers, batch_size: shape.batch_size },
        }))
    }

    /// A buffer of zeros, `bound` bytes of which are bound.
    fn page_buffer(
        &self,
        label: &'static str,
        size: u64,
        bound: u64,
        checks: &mut Checks,
    ) -> Result<wgpu::Buffer, BuildError> {
        let capabilities = &self.kernels().capabilities;
        for (limit, needed, available) in [
            ("max_storage_buffer_binding_size", bound, capabilities.max_binding_bytes),
            ("max_buffer_size", size, capabilities.max_buffer_bytes),
        ] {
            if needed > available {
                return Err(BuildError::Limit { limit, needed, available });
            }
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let size = size.next_multiple_of(256);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        Ok(checks.guard(self.device, label, || self.device.create_buffer(&descriptor)))
    }
}

/// Stages before which the tables are checked: those that a record may begin with, the selection among them since order keys
/// may be the caller's. It says which sequences take part.
pub(crate) const fn checks_tables(stages: Stages) -> bool {
    stages.has(Stages::NORMS) || stages.has(Stages::SCORE) || stages.has(Stages::SELECT)
}
