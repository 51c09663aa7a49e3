//! The rows of many layers at once: dispatches that share no buffer which they write, so that wgpu lets them overlap.

use crate::bind::{params_binding, range_binding, words_binding};
use crate::bound::Bound;
use crate::draft::{Builder, LayerDraft, ParamsBlock};
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::Module;
use crate::pages::Views;
use crate::params::{RowFinishParams, RowParams};
use crate::plan::WORKGROUP;
use crate::row::row_workgroup;
use crate::workspace::ScratchLayout;

/// Layers that one dispatch finishes.
const FINISHED: usize = 4;

#[derive(Debug)]
pub(crate) struct Apart {
    pipeline: wgpu::ComputePipeline,
    rows: Vec<wgpu::BindGroup>,
    finish: wgpu::ComputePipeline,
    finishes: Vec<Finish>,
}

#[derive(Debug)]
struct Finish {
    group: wgpu::BindGroup,
    num_layers: u32,
}

/// Words of a row's lists apart: slots, positions, and what the finish is told.
const RESULT_WORDS: u32 = 64;

impl ScratchLayout {
    fn apart_staged(&self) -> u32 {
        self.order_stride
    }

    fn apart_result(&self) -> u32 {
        2 * self.order_stride
    }

    /// Words between rows of the lists apart.
    fn apart_stride(&self) -> u32 {
        self.apart_result() + RESULT_WORDS
    }

    /// Bytes of a layer's scratch: order keys of its rows, then their lists.
    pub fn apart_bytes(&self) -> u64 {
        self.rows_apart * u64::from(self.order_stride + self.apart_stride()) * 4
    }
}

impl Bound {
    pub(crate) fn record_rows_apart(&self, apart: &Apart, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&apart.pipeline);
        for group in &apart.rows {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(1, self.plan.shape.rows_per_layer(), 1);
        }
    }

    pub(crate) fn record_finish_apart(&self, apart: &Apart, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        pass.set_pipeline(&apart.finish);
        let workgroups = max_len.div_ceil(WORKGROUP).max(1);
        for finish in &apart.finishes {
            pass.set_bind_group(0, &finish.group, &[]);
            pass.dispatch_workgroups(workgroups, self.plan.shape.rows_per_layer(), finish.num_layers);
        }
    }
}

impl Builder<'_> {
    /// The parameters of rows with scratch of their own, from those without; `None` where a plan has no such scratch.
    pub(crate) fn apart_params(&self, whole: &RowParams) -> Option<RowParams> {
        let scratch = &self.plan.scratch;
        (scratch.rows_apart > 0).then(|| RowParams {
            state: self.state_layout(0),
            lists_stride: scratch.apart_stride(),
            staged_offset: scratch.apart_staged(),
            result_offset: scratch.apart_result(),
            ..*whole
        })
    }

    /// Where each finish's parameters are.
    pub(crate) fn push_finish_params(&self, drafts: &[LayerDraft], params: &mut ParamsBlock) -> Vec<u32> {
        let scratch = &self.plan.scratch;
        let finish = |drafts: &[LayerDraft]| {
            let layer = |ix: usize| drafts[ix.min(drafts.len() - 1)].rows.layer;
            params.push(&RowFinishParams {
                state: self.state_layout(0),
                layer0: layer(0),
                layer1: layer(1),
                layer2: layer(2),
                layer3: layer(3),
                lists_stride: scratch.apart_stride(),
                staged_offset: scratch.apart_staged(),
                result_offset: scratch.apart_result(),
                pad0: 0,
            })
        };
        if scratch.rows_apart > 0 { drafts.chunks(FINISHED).map(finish).collect() } else { Vec::new() }
    }

    /// `None` where layers share buffers, or some of their rows go another way.
    pub(crate) fn apart(
        &self,
        (drafts, finish_params): (&[LayerDraft], &[u32]),
        params: &wgpu::Buffer,
        (rules, views): (&wgpu::Buffer, &Views<'_>),
        checks: &mut Checks,
    ) -> Option<Apart> {
        let (shape, scratch) = (&self.plan.shape, &self.plan.scratch);
        let capabilities = &self.kernels().capabilities;
        let rows = u64::from(shape.rows_per_layer());
        let total = rows * drafts.len() as u64;
        let workgroup = row_workgroup(shape, &self.plan.policy, capabilities, total)?;
        let one_window_each = drafts.len() == self.plan.layers.len();
        if scratch.rows_apart == 0 || !one_window_each || drafts.iter().any(|d| d.apart_params.is_none()) {
            return None;
        }
        let buffers_of = |draft: &LayerDraft| {
            let view = &views.layers[draft.rows.layer as usize];
            [view.keys.buffer, view.values.buffer]
        };
        let shares =
            |ix: usize| drafts[..ix].iter().any(|d| buffers_of(d).iter().any(|b| buffers_of(&drafts[ix]).contains(b)));
        if (0..drafts.len()).any(shares) {
            return None;
        }
        let order_words = rows * u64::from(scratch.order_stride);
        let lists = |layer: usize| {
            words_binding(&self.workspace.apart[layer], order_words, rows * u64::from(scratch.apart_stride()))
        };
        let group = |(layer, draft): (usize, &LayerDraft)| {
            let view = &views.layers[draft.rows.layer as usize];
            let bindings = [
                params_binding::<RowParams>(params, draft.apart_params?),
                range_binding(view.keys.buffer, draft.window.keys),
                range_binding(view.values.buffer, draft.window.values),
                self.state.meta().as_entire_binding(),
                self.state.positions().as_entire_binding(),
                words_binding(&self.workspace.apart[layer], 0, order_words),
                lists(layer),
                rules.as_entire_binding(),
            ];
            Some(self.group(LayoutKind::RowApart, &bindings, checks))
        };
        let rows = drafts.iter().enumerate().map(group).collect::<Option<Vec<_>>>()?;
        let finish = |(ix, &offset): (usize, &u32)| {
            let first = ix * FINISHED;
            let num_layers = (drafts.len() - first).min(FINISHED);
            let mut bindings = vec![
                params_binding::<RowFinishParams>(params, offset),
                self.state.meta().as_entire_binding(),
                self.state.positions().as_entire_binding(),
                self.state.status().as_entire_binding(),
            ];
            bindings.extend((0..FINISHED).map(|i| lists(first + i.min(num_layers - 1))));
            #[expect(clippy::cast_possible_truncation, reason = "at most four")]
            Finish { group: self.group(LayoutKind::RowFinish, &bindings, checks), num_layers: num_layers as u32 }
        };
        let finishes = finish_params.iter().enumerate().map(finish).collect();
        let constants = [("WG_SIZE", f64::from(WORKGROUP))];
        Some(Apart {
            pipeline: self.row_pipeline(workgroup, true, checks),
            rows,
            finish: self.kernels().pipeline(Module::RowFinish, "finish_rows", &constants, checks),
            finishes,
        })
    }
}
