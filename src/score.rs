//! The score stage: its parameters, scratch, bindings and pipelines, whatever the score.

use crate::bind::{params_binding, range_binding, row_binding, words_binding};
use crate::bound::PARAMS_STRIDE;
use crate::criterion::{ExternalScore, Score};
use crate::draft::{Builder, LayerDraft, RowRange, word};
use crate::kernel::Checks;
use crate::layout::LayoutKind;
use crate::module::{Access, Module, Tokens};
use crate::pages::Views;
use crate::params::{KeyNormParams, ScoreParams, TensorLayout};
use crate::plan::{PlanInner, WORKGROUP};
use crate::policy::{Direction, Policy};
use crate::reference::key_diff::sum_tile;
use crate::shape::{Dtype, KvShape, TensorSpec};

/// Bits of 2.0, the largest 1 - cosine.
const TWO_BITS: u32 = 0x4000_0000;
const INFINITY_BITS: u32 = 0x7f80_0000;
/// Of -infinity among ordered f32, and of +infinity from there.
const FIRST_RANK: u32 = 0x007f_ffff;
const HIGHEST_RANK: u32 = 0xff80_0000 - FIRST_RANK;
/// Words of a vector of the shaders.
const QUAD: u32 = 4;
/// Workgroups that take tiles of all rows, and the least and the most tokens for one of them.
const TAKERS: u32 = 1024;
const LEAST_TAKEN: u32 = 256;
const MOST_TAKEN: u32 = 4096;

/// The score of one window of rows.
#[derive(Debug)]
pub(crate) struct ScoreStage {
    /// Dispatches that go first.
    before: Vec<Before>,
    plain: wgpu::ComputePipeline,
    /// With the histogram of first digits.
    fused: wgpu::ComputePipeline,
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
        pass.dispatch_workgroups(num_rows, tiles.parts(fused, max_len, num_rows), 1);
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
        let (module, constants) = self.score_module(score, &shape.keys, (draft.keys_access, draft.tokens));
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
                self.score_group(scored(range_binding(scores.buffer, draft.scores)), params, None, checks)
            }
        };
        let [plain, fused] =
            self.score_pipelines(module, word(draft.array.len() as u64), (self.plan.tiles, &constants), checks);
        ScoreStage { before, plain, fused, group }
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
        let tile = score_tile(spec, 128);
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
                constants = vec![workgroup, ("ORDER_KEYS", f64::from(u8::from(order_keys)))];
                Module::External
            }
        };
        if dtype == Dtype::I8Scaled && !matches!(score, Score::External(_)) {
            constants.push(("KEY_WORDS", f64::from(spec.row_bytes() / 4)));
        }
        constants.extend(self.page_size());
        (module, constants)
    }
}

/// Tokens of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoreTiles {
    pub plain: u32,
    /// With the histogram fused, a workgroup to a tile.
    fused: u32,
    /// With the histogram fused, where workgroups take tiles until none is left, as shared/score_tile.wgsl has it.
    taken: Option<u32>,
}

impl ScoreTiles {
    pub fn new(shape: &KvShape, policy: &Policy, serial: bool) -> Self {
        if policy.caches_sums() {
            // Whole tiles of the sums, so that what is summed and what is scored are the same tokens.
            let tile = sum_tile(&shape.keys);
            return Self { plain: tile, fused: tile, taken: None };
        }
        let plain = score_tile(&shape.keys, 128);
        // A histogram takes as long for few tokens as for many, which a CPU cannot hide.
        let fused = score_tile(&shape.keys, if serial { 4096 } else { 512 });
        let is_norm = matches!(policy.score_in_use(), Score::KeyNorm | Score::ValueKeyRatio);
        Self { plain, fused, taken: (is_norm && !serial).then_some(plain) }
    }

    /// Of rows that take several dispatches, which would count on from each other.
    pub const fn of_bands(self) -> Self {
        Self { taken: None, ..self }
    }

    fn of(self, fused: bool) -> u32 {
        if fused { self.taken.unwrap_or(self.fused) } else { self.plain }
    }

    /// Workgroups of a row. Those that take tiles are somewhat more than find room at once; but no more than have enough
    /// tokens to be worth their histogram, and no fewer than let the last of many rows end together. See benches/record.
    pub fn parts(self, fused: bool, max_len: u32, num_rows: u32) -> u32 {
        let tiles = max_len.div_ceil(self.of(fused));
        if !fused || self.taken.is_none() {
            return tiles;
        }
        let [least, most] = [MOST_TAKEN, LEAST_TAKEN].map(|tokens| max_len.div_ceil(tokens));
        tiles.min(TAKERS.div_ceil(num_rows).max(least).min(most))
    }
}

/// Tokens a workgroup of the norm scores, about as many as wanted.
pub(crate) fn score_tile(spec: &TensorSpec, wanted: u32) -> u32 {
    let round = WORKGROUP / spec.norm_lanes() * 4;
    round * wanted.div_ceil(round)
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

/// The bits from which those of a score are subtracted, so that low keys are what is kept; 0: they are low already.
fn complement(policy: &Policy) -> u32 {
    match (policy.score_in_use(), policy.direction) {
        // The bits are those of 1 - cosine.
        (Score::KeyDiff, Direction::Lowest) => TWO_BITS,
        (Score::KeyDiff, _) | (_, Direction::Lowest) => 0,
        (Score::External(ExternalScore::F32), _) => HIGHEST_RANK,
        // Order keys end at 0xFFFF_FFFE, and the shader counts them from 0.
        (Score::External(ExternalScore::OrderKeys), _) => 0xffff_fffd,
        _ => INFINITY_BITS,
    }
}

/// (shift, window) of first digits, as shared/first_digit.wgsl has them: 128 bins an octave over squared norms from 2^-1 to
/// 2^13 and their ratios from 2^-12 to 2^2, or their complements, and one bin to each other octave; 256 an octave over
/// 1 - cosine from 2^-6 (cached 2^-5) to 2, and two to each other; 32 an octave over positive f32 scores of 60 octaves, from
/// 2^-30 or, of the highest, 2^-28, and one to each four others; random keys are uniform over 31 bits, the caller's over 32.
pub(crate) fn digit_window(policy: &Policy) -> (u32, u32) {
    const INFINITY: u32 = INFINITY_BITS >> 23;
    // Rank of the f32 that has these bits.
    let rank = |bits: u32| (1 << 31) + bits - FIRST_RANK;
    let lowest = match policy.score_in_use() {
        Score::ValueKeyRatio => 127 - 12,
        _ => 127 - 1,
    };
    // In wide bins. Those of the window and the others are at most all bins.
    let (shift, first, len) = match (policy.score_in_use(), policy.direction) {
        (_, Direction::Random { .. }) => (20, 0, 16),
        // What the state keeps is 1 - cosine, subtracted from infinity like a norm.
        (Score::KeyDiff, Direction::Lowest) if policy.cached_norms => (15, (INFINITY_BITS - TWO_BITS) >> 22, 12),
        (Score::KeyDiff, Direction::Lowest) => (15, 0, 14),
        (Score::KeyDiff, _) => (15, (TWO_BITS >> 22) - 14, 14),
        (Score::External(ExternalScore::F32), Direction::Lowest) => (18, rank((127 - 30) << 23) >> 25, 15),
        (Score::External(ExternalScore::F32), _) => (18, (HIGHEST_RANK - rank((127 + 30) << 23)) >> 25, 15),
        (Score::External(ExternalScore::OrderKeys), _) => (21, 0, 16),
        (_, Direction::Lowest) => (16, lowest, 14),
        _ => (16, INFINITY - lowest - 14, 14),
    };
    (shift, first | (len << 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;

    /// As shared/first_digit.wgsl has it, but for the clamp to the last bin.
    fn first_digit(key: u32, policy: &Policy) -> i64 {
        let (shift, window) = digit_window(policy);
        let bins = |wide_bins: u32| i64::from(wide_bins) * 127;
        let wide = i64::from(key >> (shift + 7));
        let narrow = i64::from(key >> shift) - bins(window & 0xffff);
        wide.max(narrow).min(wide + bins(window >> 16))
    }

    fn keydiff(direction: Direction) -> Policy {
        Policy { direction, ..Policy::keydiff(Budget::keep_ratio(0.5)) }
    }

    #[test]
    fn windows_hold_what_they_say() {
        let is_narrow = |policy: &Policy, score: f32| {
            let key = match complement(policy) {
                0 => score.to_bits() + 1,
                bits => bits - score.to_bits() + 1,
            };
            let (shift, _) = digit_window(policy);
            first_digit(key + (1 << shift), policy) == first_digit(key, policy) + 1
                && first_digit(key + (1 << shift) - 1, policy) <= first_digit(key, policy) + 1
        };
        let norms = |direction| Policy { direction, ..Policy::new(Budget::keep_ratio(0.5)) };
        for direction in [Direction::Lowest, Direction::Highest] {
            for (norm, expected) in [(0.45, false), (0.51, true), (8100.0, true), (8500.0, false)] {
                assert_eq!(is_narrow(&norms(direction), norm), expected, "{direction:?} {norm}");
            }
            for (distance, expected) in [(0.015, false), (0.0158, true), (1.99, true)] {
                assert_eq!(is_narrow(&keydiff(direction), distance), expected, "{direction:?} {distance}");
            }
        }
    }

    #[test]
    fn parts_are_few_but_enough() {
        let tiles = ScoreTiles { plain: 128, fused: 512, taken: Some(128) };
        for (max_len, num_rows, expected) in [
            (1, 1, 1),
            (9000, 8, 36),
            (131_072, 1, 512),
            (131_072, 8, 128),
            (131_072, 4096, 32),
            (1 << 20, 1, 1024),
            (1 << 20, 8, 256),
        ] {
            assert_eq!(tiles.parts(true, max_len, num_rows), expected, "{num_rows} of {max_len}");
            assert_eq!(tiles.parts(false, max_len, num_rows), max_len.div_ceil(128));
            assert_eq!(tiles.of_bands().parts(true, max_len, num_rows), max_len.div_ceil(512));
        }
    }

    /// Only keys of NaN may lie beyond all bins.
    #[test]
    fn bins_are_enough() {
        let budget = || Budget::keep_ratio(0.5);
        let external = |score| Policy { score: Score::External(score), ..Policy::new(budget()) };
        let of_all = [
            Policy::new(budget()),
            Policy { score: Score::ValueKeyRatio, ..Policy::new(budget()) },
            external(ExternalScore::F32),
            keydiff(Direction::Lowest),
            Policy { cached_norms: true, ..keydiff(Direction::Lowest) },
        ];
        for policy in of_all {
            for direction in [Direction::Lowest, Direction::Highest] {
                let policy = Policy { direction, ..policy.clone() };
                let last = match policy.score {
                    Score::External(_) => HIGHEST_RANK + 1,
                    // Cached and complemented they are subtracted from infinity.
                    Score::KeyDiff if !policy.cached_norms || direction == Direction::Highest => TWO_BITS + 1,
                    _ => INFINITY_BITS + 1,
                };
                assert!((1..2047).contains(&first_digit(last, &policy)), "{policy:?}");
                assert_eq!(first_digit(0, &policy), 0, "{policy:?}");
            }
        }
        let random = Policy { direction: Direction::Random { seed: 1 }, ..Policy::new(budget()) };
        assert_eq!(first_digit((1 << 31) - 1, &random), 2047);
        assert_eq!(first_digit(u32::MAX, &external(ExternalScore::OrderKeys)), 2047);
    }
}
