//! The score stage: its parameters, scratch, bindings and pipelines, whatever the score.

use crate::bind::{params_binding, range_binding, row_binding, words_binding};
use crate::bound::PARAMS_STRIDE;
use crate::criterion::{ExternalScore, Score};
use crate::draft::{Builder, LayerDraft, RowRange, word};
use crate::first_digit::complement;
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::{Access, Module, Tokens};
use crate::pages::Views;
use crate::params::{KeyNormParams, ScoreParams, TensorLayout};
use crate::plan::{PlanInner, WORKGROUP};
use crate::policy::Policy;
use crate::reference::key_diff::sum_tile;
use crate::score_tiles::{ScoreTiles, values_tile};
use crate::shape::{Dtype, KvShape, TensorSpec};

/// Words of a vector of the shaders.
const QUAD: u32 = 4;

/// The score of one window of rows.
#[derive(Debug)]
pub(crate) struct ScoreStage {
    /// Dispatches that go first.
    before: Vec<Before>,
    plain: wgpu::ComputePipeline,
    /// With the histogram of first digits.
    fused: wgpu::ComputePipeline,
    /// Rows of the grid that are scouts', of both.
    scouts: u32,
    group: wgpu::BindGroup,
}

#[derive(Debug)]
struct Before {
    pipeline: wgpu::ComputePipeline,
    /// Where it is not that of the score.
    group: Option<wgpu::BindGroup>,
    grid: Grid,
}

/// Workgroups of a row.
#[derive(Debug, Clone, Copy)]
enum Grid {
    /// One for each run of so many tokens.
    Tiles(u32),
    /// So many.
    Parts(u32),
}

impl ScoreStage {
    /// Rows come first in the grids, so that workgroups of different rows, whose counts are apart, run at once.
    pub(crate) fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        max_len: u32,
        num_rows: u32,
        (fused, tiles): (bool, ScoreTiles),
    ) {
        for before in &self.before {
            pass.set_pipeline(&before.pipeline);
            pass.set_bind_group(0, before.group.as_ref().unwrap_or(&self.group), &[]);
            let parts = match before.grid {
                Grid::Tiles(tokens) => max_len.div_ceil(tokens),
                Grid::Parts(parts) => parts,
            };
            pass.dispatch_workgroups(num_rows, parts, 1);
        }
        pass.set_pipeline(if fused { &self.fused } else { &self.plain });
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(num_rows, self.scouts + tiles.parts(fused, max_len, num_rows), 1);
    }
}

/// What a dispatch of the score reads: rows of a tensor, by a table where the cache is paged.
pub(crate) struct Scored<'a> {
    pub rows: RowRange,
    /// Offset of the parameters.
    pub params: u32,
    /// `None`: bound as an array.
    pub tensor: Option<wgpu::BindingResource<'a>>,
    pub tokens: Tokens,
    pub table: Option<wgpu::BindingResource<'a>>,
}

fn table_of<'a>(draft: &LayerDraft, views: &Views<'a>) -> Option<wgpu::BindingResource<'a>> {
    let table = views.tables.get(draft.rows.layer as usize).zip(draft.table);
    table.map(|(table, range)| range_binding(table.buffer, range))
}

type Constants = Vec<(&'static str, f64)>;

impl Builder<'_> {
    pub(crate) fn score_stage(
        &self,
        draft: &LayerDraft,
        params: &wgpu::Buffer,
        views: &Views<'_>,
        checks: &mut Checks,
    ) -> ScoreStage {
        let shape = &self.plan.shape;
        let score = self.plan.policy.score_in_use();
        let view = &views.layers[draft.rows.layer as usize];
        let w = &draft.window;
        let keys = range_binding(view.keys.buffer, w.keys);
        let scored = |tensor| Scored {
            rows: draft.rows,
            params: draft.score_params,
            tensor: draft.array.is_empty().then_some(tensor),
            tokens: draft.tokens,
            table: table_of(draft, views),
        };
        let mut before = Vec::new();
        let (module, mut constants) = self.score_module(score, &shape.keys, (draft.keys_access, draft.tokens));
        let group = match score {
            Score::KeyNorm => self.score_group(scored(keys), params, None, checks),
            Score::KeyDiff | Score::Centroid => {
                let stride = self.plan.scratch.sums_stride;
                let sums = if self.plan.policy.caches_sums() {
                    let first_of_layer = u64::from(draft.rows.layer) * u64::from(shape.rows_per_layer());
                    let first_row = first_of_layer + u64::from(w.first_row);
                    row_binding(self.state.key_sums_or_dummy(), first_row, w.num_rows, stride)
                } else {
                    row_binding(&self.workspace.sums, w.first_row.into(), w.num_rows, stride)
                };
                let mut add = |entry, grid| {
                    let pipeline = self.kernels().pipeline(module, entry, &constants, checks);
                    before.push(Before { pipeline, group: None, grid });
                };
                add("sum_keys", Grid::Tiles(sum_tile(&shape.keys)));
                add("add_tiles", Grid::Parts(shape.keys.head_dim.div_ceil(16)));
                self.score_group(scored(keys), params, Some(sums), checks)
            }
            Score::ValueKeyRatio => {
                before.push(self.value_norms(draft, params, views, checks));
                self.score_group(scored(keys), params, None, checks)
            }
            Score::External(_) => {
                let scores = &views.scores[draft.rows.layer as usize];
                // By strides, in a paged cache too.
                let scored = scored(range_binding(scores.buffer, draft.scores));
                let scored = Scored { tokens: Tokens::Strided, table: None, ..scored };
                self.score_group(scored, params, None, checks)
            }
        };
        let scouts = if score == Score::KeyNorm { self.kernels().capabilities.scouts_of_parts() } else { 0 };
        if score == Score::KeyNorm {
            constants.push(("SCOUTS", scouts.into()));
        }
        let [plain, fused] =
            self.score_pipelines(module, word(draft.array.len() as u64), (self.plan.tiles, &constants), checks);
        ScoreStage { before, plain, fused, scouts, group }
    }

    /// Alone, and with the histogram fused; `num_layers` in arrays.
    pub(crate) fn score_pipelines(
        &self,
        module: Module,
        num_layers: u32,
        (tiles, constants): (ScoreTiles, &[(&'static str, f64)]),
        checks: &mut Checks,
    ) -> [wgpu::ComputePipeline; 2] {
        [false, true].map(|fused| {
            let tile = ("TILE", tiles.of(fused).into());
            let constants = [constants, &[tile, ("HISTOGRAM", f64::from(u8::from(fused)))]].concat();
            self.kernels().pipeline_of(module, "score", num_layers, &constants, checks)
        })
    }

    /// The squared norms of the values, in place of order keys.
    fn value_norms(&self, draft: &LayerDraft, params: &wgpu::Buffer, views: &Views<'_>, checks: &mut Checks) -> Before {
        let spec = &self.plan.shape.values;
        let access = if draft.values_access == Access::Joined { draft.keys_access } else { draft.values_access };
        let (module, mut constants) = self.score_module(Score::ValueKeyRatio, spec, (access, draft.tokens));
        let tile = values_tile(spec);
        constants.extend([("TILE", tile.into()), ("VALUES", 1.0)]);
        let view = &views.layers[draft.rows.layer as usize];
        let values = range_binding(view.values.buffer, draft.window.values);
        let of_values = Scored {
            rows: draft.rows,
            params: draft.score_params + PARAMS_STRIDE,
            tensor: Some(values),
            tokens: draft.tokens,
            table: table_of(draft, views),
        };
        Before {
            pipeline: self.kernels().pipeline(module, "score", &constants, checks),
            group: Some(self.score_group(of_values, params, None, checks)),
            grid: Grid::Tiles(tile),
        }
    }

    pub(crate) fn score_group(
        &self,
        scored: Scored<'_>,
        params: &wgpu::Buffer,
        sums: Option<wgpu::BindingResource<'_>>,
        checks: &mut Checks,
    ) -> wgpu::BindGroup {
        let place = scored.rows;
        let scratch = self.row_scratch(place.first_scratch_row, place.num_rows);
        let position_words = u64::from(place.num_rows) * u64::from(self.plan.shape.capacity) + 64;
        let mut bindings = vec![params_binding::<ScoreParams>(params, scored.params)];
        bindings.extend(scored.tensor);
        bindings.extend([
            self.state.meta().as_entire_binding(),
            words_binding(self.state.positions(), place.first_position, position_words),
            if self.plan.policy.cached_norms {
                words_binding(self.state.norms_or_dummy(), place.first_position, position_words)
            } else {
                scratch.order_keys
            },
            scratch.histogram,
            self.state.status().as_entire_binding(),
        ]);
        let kind = LayoutKind::score(sums.is_some(), scored.tokens);
        bindings.extend(sums);
        bindings.extend(scored.table);
        self.group(kind, &bindings, checks)
    }

    /// The module of a score, and its constants but for tile and histogram.
    pub(crate) fn score_module(
        &self,
        score: Score,
        spec: &TensorSpec,
        (access, tokens): (Access, Tokens),
    ) -> (Module, Constants) {
        let (dtype, vec4) = (spec.dtype, access == Access::Vec4);
        let reduction = self.kernels().capabilities.reduction(spec.norm_lanes());
        let paged = tokens == Tokens::Paged;
        let workgroup = ("WG_SIZE", f64::from(WORKGROUP));
        let mut constants =
            vec![workgroup, ("LANES", f64::from(spec.norm_lanes())), ("CHUNKS", f64::from(spec.norm_chunks()))];
        let module = match score {
            Score::KeyNorm => {
                constants.push(("CACHED", f64::from(u8::from(self.plan.policy.cached_norms))));
                Module::KeyNorm { dtype, vec4, reduction, tokens }
            }
            Score::ValueKeyRatio => Module::ValueKeyRatio { dtype, vec4, reduction, paged },
            Score::KeyDiff | Score::Centroid => {
                constants.push(("SUM_TILE", sum_tile(spec).into()));
                constants.push(("CENTROID", f64::from(u8::from(score == Score::Centroid))));
                constants.push(("CACHED", f64::from(u8::from(self.plan.policy.cached_norms))));
                Module::KeyDiff { dtype, vec4, reduction, paged }
            }
            Score::External(kind) => {
                let order_keys = kind == ExternalScore::OrderKeys;
                // It reads no tokens, and finds scores by strides.
                return (Module::External, vec![workgroup, ("ORDER_KEYS", f64::from(u8::from(order_keys)))]);
            }
        };
        if dtype == Dtype::I8Scaled {
            constants.push(("KEY_WORDS", f64::from(spec.row_bytes() / 4)));
        }
        constants.extend(self.page_size());
        (module, constants)
    }
}

/// Words between rows of the sums of keys and from a row's first tile to its whole sum; 0 where the score needs none.
pub(crate) fn sums_layout(shape: &KvShape, policy: &Policy) -> (u32, u32) {
    match policy.score_in_use() {
        Score::KeyNorm | Score::ValueKeyRatio | Score::External(_) => (0, 0),
        Score::KeyDiff | Score::Centroid => {
            let offset = shape.capacity.div_ceil(sum_tile(&shape.keys)) * shape.keys.head_dim;
            ((offset + shape.keys.head_dim + QUAD).next_multiple_of(64), offset)
        }
    }
}

/// The parameters of the norm, in the form of the other scores and with the tensor that they read.
pub(crate) fn params_of_score(norm: &KeyNormParams, tensor: TensorLayout, plan: &PlanInner) -> ScoreParams {
    let PlanInner { policy, scratch, .. } = plan;
    ScoreParams {
        state: norm.state,
        num_rows: norm.num_rows,
        first_row: norm.first_row,
        layer: norm.layer,
        order_stride: norm.order_stride,
        keys: tensor,
        first_sequence: norm.first_sequence,
        complement: complement(policy),
        sums_stride: scratch.sums_stride / QUAD,
        sums_offset: scratch.sums_offset / QUAD,
        sinks: norm.sinks,
        recent: norm.recent,
        share_low: norm.share_low,
        share_high: norm.share_high,
        histogram_stride: norm.histogram_stride,
        digit_shift: norm.digit_shift,
        digit_window: norm.digit_window,
        table_base: norm.table_base,
        table_stride: norm.table_stride,
        zero: 0,
        pad1: 0,
        pad2: 0,
    }
}
