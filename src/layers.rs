//! Many layers at once: whole rows, or each stage, in a pass of its own, where the dispatches of different layers share no
//! buffer that they write, so that wgpu puts no barrier between them and they overlap.

use crate::bind::params_binding;
use crate::bound::{Bound, LayerWindow, Path};
use crate::device::Capabilities;
use crate::draft::{Builder, CheckedLayer, LayerDraft, ParamsBlock, SelectDraft, word};
use crate::kernel::Checks;
use crate::layout::{LayoutKind, MOST_FINISHED};
use crate::module::Module;
use crate::pages::Views;
use crate::params::FinishLayersParams;
use crate::plan::WORKGROUP;
use crate::policy::{Order, Policy, Selector};
use crate::shape::KvShape;
use crate::windows::LayerWindows;

/// Of keys of a layer from which on barriers between layers take too little of the time for scratch of its own, bytes.
const LARGE_LAYER: u64 = 256 << 20;

/// Whether layers have scratch of their own, if there are several: what they write apart is only what every plan has.
pub(crate) fn takes_apart(shape: &KvShape, policy: &Policy, capabilities: &Capabilities) -> bool {
    let rows = u64::from(shape.rows_per_layer());
    let capacity = u64::from(shape.capacity);
    policy.selector != Selector::Bitonic
        && !policy.cached_norms
        && !policy.segments
        && policy.pool.is_none()
        && capabilities.layers_at_once
        && rows * capacity * u64::from(shape.keys.row_bytes()) < LARGE_LAYER
        && u64::from(shape.num_layers) * rows * capacity * 4 <= capabilities.max_binding_bytes
}

#[derive(Debug)]
pub(crate) struct Apart {
    layers: Vec<ApartLayer>,
    /// Whole rows in one dispatch a layer, where that is faster.
    rows: Option<Rows>,
    finish: wgpu::ComputePipeline,
    finishes: Vec<Finish>,
}

#[derive(Debug)]
struct Rows {
    pipeline: wgpu::ComputePipeline,
    groups: Vec<wgpu::BindGroup>,
}

/// As many layers as one dispatch can bind.
#[derive(Debug)]
struct Finish {
    group: wgpu::BindGroup,
    num_layers: u32,
}

#[derive(Debug)]
struct ApartLayer {
    window: LayerWindow,
    select_group: wgpu::BindGroup,
    select_params: u32,
}

/// The parameters of the layers at once.
pub(crate) struct ApartDraft {
    layers: Vec<(LayerDraft, SelectDraft)>,
    finishes: Vec<u32>,
}

impl Bound {
    pub(crate) fn encode_apart(&self, apart: &Apart, encoder: &mut wgpu::CommandEncoder, max_len: u32) {
        let open = |label| wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        if let Some(rows) = &apart.rows {
            {
                let mut pass = encoder.begin_compute_pass(&open("keynorm.row"));
                pass.set_pipeline(&rows.pipeline);
                for group in &rows.groups {
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(1, self.plan.shape.rows_per_layer(), 1);
                }
            }
            let mut pass = encoder.begin_compute_pass(&open("keynorm.finish"));
            apart.record_finishes(self, &mut pass, &apart.finishes, max_len);
            return;
        }
        let is_long = self.path(max_len) == Path::RadixLong;
        let fused = is_long && self.plan.may_fuse();
        let tile = self.plan.tiles.of(fused);
        {
            let mut pass = encoder.begin_compute_pass(&open("keynorm.score"));
            for ApartLayer { window, .. } in &apart.layers {
                window.score.record(&mut pass, max_len, window.num_rows, (fused, tile));
            }
        }
        for (pipeline, workgroups) in self.radix_dispatches(max_len, fused) {
            let mut pass = encoder.begin_compute_pass(&open("keynorm.select"));
            pass.set_pipeline(pipeline);
            for layer in &apart.layers {
                pass.set_bind_group(0, &layer.select_group, &[layer.select_params]);
                pass.dispatch_workgroups(workgroups, layer.window.num_rows, 1);
            }
        }
        let windows = || apart.layers.iter().map(|layer| &layer.window);
        let moves_of = |window| self.move_dispatches(window, max_len, self.overlapping_layers);
        // The moves of a layer wait for each other; every layer has as many.
        for step in 0..windows().next().map_or(0, |window| moves_of(window).count()) {
            let mut pass = encoder.begin_compute_pass(&open("keynorm.compact"));
            // The finishes wait for each other: the first goes beside the first moves, the others after them.
            let (beside, after) = if step == 0 { apart.finishes.split_at(1) } else { Default::default() };
            apart.record_finishes(self, &mut pass, beside, max_len);
            for window in windows() {
                if let Some(dispatch) = moves_of(window).nth(step) {
                    dispatch.record(&mut pass, window);
                }
            }
            apart.record_finishes(self, &mut pass, after, max_len);
        }
    }
}

impl Apart {
    fn record_finishes(&self, bound: &Bound, pass: &mut wgpu::ComputePass<'_>, finishes: &[Finish], max_len: u32) {
        let rows = bound.plan.shape.rows_per_layer();
        for finish in finishes {
            pass.set_pipeline(&self.finish);
            pass.set_bind_group(0, &finish.group, &[]);
            let workgroups = bound.finish_workgroups(max_len, rows.saturating_mul(finish.num_layers));
            pass.dispatch_workgroups(workgroups, rows, finish.num_layers);
        }
    }
}

impl Builder<'_> {
    /// `None` where layers share buffers, or some of their rows go another way.
    pub(crate) fn draft_apart(&self, layers: &[CheckedLayer], params: &mut ParamsBlock) -> Option<ApartDraft> {
        let scratch = &self.plan.scratch;
        let is_whole = |layer: &CheckedLayer| match &layer.windows {
            LayerWindows::Rows { windows, .. } => windows.len() == 1,
            LayerWindows::Bands { .. } => false,
        };
        if scratch.layers_apart == 0
            || self.overlapping_layers == 1
            || self.pages.is_some()
            || !layers.iter().all(is_whole)
        {
            return None;
        }
        let own = Builder { apart: true, ..*self };
        let mut drafts = Vec::new();
        for layer in layers {
            let select = own.draft_select_of(layer, params);
            drafts.extend(own.draft_layer(layer, params).into_iter().map(|draft| (draft, select.clone())));
        }
        let ids: Vec<u32> = layers.iter().map(|layer| layer.layer).collect();
        let layout = scratch.apart();
        let finish = |ids: &[u32]| {
            let mut layers = [0; MOST_FINISHED];
            layers[..ids.len()].copy_from_slice(ids);
            params.push(&FinishLayersParams {
                state: self.state_layout(0),
                layers,
                lists_stride: scratch.lists_stride,
                staged_offset: scratch.order_stride,
                infos_base: word(layout.infos),
                status_base: word(layout.told),
                order: u32::from(self.plan.policy.order == Order::Positional),
                pad0: 0,
                pad1: 0,
                pad2: 0,
            })
        };
        Some(ApartDraft { layers: drafts, finishes: ids.chunks(self.layers_a_finish()).map(finish).collect() })
    }

    fn layers_a_finish(&self) -> usize {
        self.kernels().capabilities.layers_a_finish
    }

    pub(crate) fn bound_apart(
        &self,
        draft: &ApartDraft,
        params: &wgpu::Buffer,
        (rules, views): (&wgpu::Buffer, &Views<'_>),
        checks: &mut Checks,
    ) -> Apart {
        let own = Builder { apart: true, ..*self };
        let num_rows = draft.layers.len() as u64 * u64::from(self.plan.shape.rows_per_layer());
        let rows = own.rows_apart_pipeline(num_rows, checks).and_then(|pipeline| {
            let layers = draft.layers.iter().enumerate().map(|(ix, (layer, _))| (ix, layer));
            let groups = layers.map(|layer| own.row_group_apart(layer, params, (rules, views), checks));
            Some(Rows { pipeline, groups: groups.collect::<Option<_>>()? })
        });
        let layer = |(layer, select): &(LayerDraft, SelectDraft)| ApartLayer {
            window: own.layer_window(layer, params, (rules, views), checks),
            select_group: own.select_group(select, params, rules, checks),
            select_params: select.params_offset,
        };
        let layers = if rows.is_some() { Vec::new() } else { draft.layers.iter().map(layer).collect() };
        let most = self.layers_a_finish();
        let sixteen = most == MOST_FINISHED;
        let kind = if sixteen { LayoutKind::FinishSixteen } else { LayoutKind::FinishFour };
        let finish = |(&offset, scratches): (&u32, &[crate::workspace::ApartScratch])| {
            let mut bindings = vec![
                params_binding::<FinishLayersParams>(params, offset),
                self.state.meta().as_entire_binding(),
                self.state.positions().as_entire_binding(),
                self.state.status().as_entire_binding(),
            ];
            let lists = |i: usize| scratches[i.min(scratches.len() - 1)].lists.as_entire_binding();
            bindings.extend((0..most).map(lists));
            Finish { group: self.group(kind, &bindings, checks), num_layers: word(scratches.len() as u64) }
        };
        let finishes = draft.finishes.iter().zip(self.workspace.apart.chunks(most)).map(finish).collect();
        let constants = [("WG_SIZE", f64::from(WORKGROUP))];
        let module = Module::FinishLayers { sixteen };
        let finish = self.kernels().pipeline(module, "finish_layers", &constants, checks);
        Apart { layers, rows, finish, finishes }
    }
}
