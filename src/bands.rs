//! Layers whose rows exceed a binding: scored and moved by bands of tokens.

use crate::bind::{params_binding, range_binding};
use crate::criterion::Score;
use crate::draft::{Builder, CheckedLayer, INFOS_A_SLOT, RowRange, ScoredSlots, access_of, tensor_layout, word};
use crate::kernel::Checks;
use crate::lattice::Lattice;
use crate::layout::LayoutKind;
use crate::module::{Access, Module, Tokens};
use crate::moves::{even_slice, slice_chunks};
use crate::pages::Views;
use crate::params::BandParams;
use crate::params_block::ParamsBlock;
use crate::plan::{SELECT_TILE, WORKGROUP};
use crate::policy::Order;
use crate::score::Scored;
use crate::score_tiles::ScoreTiles;
use crate::shape::TensorSpec;
use crate::windows::{Band, LayerWindows, RowGroup};

/// A bound layer, in the order of its dispatches.
#[derive(Debug)]
pub(crate) struct BandedLayer {
    scores: Vec<ScoreBand>,
    tiles: ScoreTiles,
    moves: Vec<PairMoves>,
}

#[derive(Debug)]
struct ScoreBand {
    num_rows: u32,
    first_slot: u32,
    end_slot: u32,
    /// Alone, and with the histogram fused.
    pipelines: [wgpu::ComputePipeline; 2],
    group: wgpu::BindGroup,
}

#[derive(Debug)]
struct PairMoves {
    num_rows: u32,
    first_source: u32,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    params: u32,
    workgroups: u32,
}

/// The drafted dispatches of a layer.
pub(crate) struct BandsDraft {
    layer: u32,
    keys_access: Access,
    scores: Vec<ScoreDraft>,
    moves: Vec<PairDraft>,
}

struct ScoreDraft {
    rows: RowRange,
    band: Band,
    params: u32,
}

/// Rows of one tensor that are bound together.
struct TensorGroup<'a> {
    of_keys: bool,
    lattice: &'a Lattice,
    rows: RowRange,
    group: &'a RowGroup,
}

struct PairDraft {
    of_keys: bool,
    rows: RowRange,
    access: Access,
    source: Band,
    target: Band,
    params: u32,
}

/// Tokens of which a selector's workgroup takes no more: rows that it holds, and tiles that it takes in turn.
pub(crate) const MOST_SELECTED: u32 = 8 * SELECT_TILE;

impl BandedLayer {
    pub(crate) fn record_score(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32, (fused, cached): (bool, bool)) {
        // New tokens, of which there are at most max_len, may lie in any band.
        for score in self.scores.iter().filter(|s| cached || s.first_slot < max_len) {
            pass.set_pipeline(&score.pipelines[usize::from(fused)]);
            pass.set_bind_group(0, &score.group, &[]);
            let slots = score.end_slot - score.first_slot;
            let slots = slots.min(if cached { max_len } else { max_len - score.first_slot });
            pass.dispatch_workgroups(score.num_rows, self.tiles.parts(fused, slots, score.num_rows), 1);
        }
    }

    /// Every pair, however low the budget: a prefix that stays, or keys, may raise it beyond what was asked for.
    pub(crate) fn record_moves(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) {
        // A row that is longer than was said may be selected from all the same, up to what the selectors' workgroups hold.
        let end = max_len.next_multiple_of(MOST_SELECTED);
        for moves in self.moves.iter().filter(|m| m.first_source < end) {
            pass.set_pipeline(&moves.pipeline);
            pass.set_bind_group(0, &moves.group, &[moves.params]);
            pass.dispatch_workgroups(moves.workgroups, moves.num_rows, 1);
        }
    }
}

impl Builder<'_> {
    /// The dispatches of a layer that is bound by bands.
    pub(crate) fn draft_bands(&self, layer: &CheckedLayer, params: &mut ParamsBlock) -> Option<BandsDraft> {
        let LayerWindows::Bands { keys, values } = &layer.windows else { return None };
        let keys_access = access_of(layer.keys.is_vec4());
        let mut scores = Vec::new();
        for group in keys {
            let rows = self.row_range(layer, group.first_row, group.num_rows);
            for &band in &group.bands {
                let layout = tensor_layout(&layer.keys, group.first_row, band.range, keys_access);
                let slots = band.first_slot..band.end_slot;
                let place = ScoredSlots { keys: layout, slots, table_base: 0, table_stride: 0 };
                scores.push(ScoreDraft { rows, band, params: params.push(&self.norm_params(&rows, place)) });
            }
        }
        let mut moves = Vec::new();
        for (of_keys, lattice, groups) in [(true, &layer.keys, keys), (false, &layer.values, values)] {
            for group in groups {
                let rows = self.row_range(layer, group.first_row, group.num_rows);
                moves.extend(self.draft_pairs(&TensorGroup { of_keys, lattice, rows, group }, params));
            }
        }
        Some(BandsDraft { layer: layer.layer, keys_access, scores, moves })
    }

    /// The pairs of bands of a group, by source, then by target.
    fn draft_pairs(&self, tensor: &TensorGroup<'_>, params: &mut ParamsBlock) -> Vec<PairDraft> {
        let &TensorGroup { of_keys, lattice, rows, group } = tensor;
        let access = access_of(lattice.is_vec4());
        let shape = &self.plan.shape;
        let mut push = |source: &Band, target: &Band| {
            params.push(&BandParams {
                tensor: tensor_layout(lattice, group.first_row, source.range, access),
                store_shift: word((source.range.start - target.range.start) / access.unit_bytes()),
                num_rows: rows.num_rows,
                first_row: rows.first_row,
                first_sequence: rows.first_row / shape.num_kv_heads,
                num_kv_heads: shape.num_kv_heads,
                lists_stride: self.plan.scratch.lists_stride,
                first_info: word(rows.first_scratch_row % INFOS_A_SLOT),
                order: u32::from(self.plan.policy.order == Order::Positional),
                first_source: source.first_slot,
                end_source: source.end_slot,
                first_slot: target.first_slot,
                end_slot: target.end_slot,
            })
        };
        let mut pairs = Vec::new();
        for (ix, &source) in group.bands.iter().enumerate() {
            for &target in &group.bands[..=ix] {
                pairs.push(PairDraft { of_keys, rows, access, source, target, params: push(&source, &target) });
            }
        }
        pairs
    }

    pub(crate) fn banded_layer(
        &self,
        draft: &BandsDraft,
        params: &wgpu::Buffer,
        views: &Views<'_>,
        checks: &mut Checks,
    ) -> BandedLayer {
        let view = &views.layers[draft.layer as usize];
        let (module, constants) =
            self.score_module(Score::KeyNorm, &self.plan.shape.keys, (draft.keys_access, Tokens::Strided));
        let tiles = self.plan.tiles.of_bands();
        let score = |s: &ScoreDraft, checks: &mut Checks| {
            let tensor = Some(range_binding(view.keys.buffer, s.band.range));
            let scored = Scored { rows: s.rows, params: s.params, tensor, tokens: Tokens::Strided, table: None };
            ScoreBand {
                num_rows: s.rows.num_rows,
                first_slot: s.band.first_slot,
                end_slot: s.band.end_slot,
                pipelines: self.score_pipelines(module, 0, (tiles, &constants), checks),
                group: self.score_group(scored, params, None, checks),
            }
        };
        let scores = draft.scores.iter().map(|s| score(s, checks)).collect();
        let moves = draft
            .moves
            .iter()
            .map(|m| {
                let buffer = if m.of_keys { view.keys.buffer } else { view.values.buffer };
                self.pair_moves(m, params, buffer, checks)
            })
            .collect();
        BandedLayer { scores, tiles, moves }
    }

    fn pair_moves(
        &self,
        draft: &PairDraft,
        params: &wgpu::Buffer,
        buffer: &wgpu::Buffer,
        checks: &mut Checks,
    ) -> PairMoves {
        let spec = if draft.of_keys { &self.plan.shape.keys } else { &self.plan.shape.values };
        let is_pair = draft.source != draft.target;
        let params_block = params_binding::<BandParams>(params, 0);
        let source = range_binding(buffer, draft.source.range);
        let (lists, infos) = self.moves_bindings(&draft.rows);
        let group = if is_pair {
            let target = range_binding(buffer, draft.target.range);
            self.group(LayoutKind::Bands, &[params_block, source, target, lists, infos], checks)
        } else {
            self.group(LayoutKind::BandsJoined, &[params_block, source, lists, infos], checks)
        };
        let walks = !is_pair && self.plan.policy.order == Order::Positional;
        let (pipeline, workgroups) = self.pair_pipeline(spec, draft, walks, checks);
        PairMoves {
            num_rows: draft.rows.num_rows,
            first_source: draft.source.first_slot,
            pipeline,
            group,
            params: draft.params,
            workgroups,
        }
    }

    /// The pipeline of a pair, and its workgroups a row.
    fn pair_pipeline(
        &self,
        spec: &TensorSpec,
        draft: &PairDraft,
        walks: bool,
        checks: &mut Checks,
    ) -> (wgpu::ComputePipeline, u32) {
        let capabilities = &self.kernels().capabilities;
        let row = self.moved(spec, draft.access);
        let workgroup = if walks { capabilities.row_workgroup } else { WORKGROUP };
        // A dispatch has one tensor, but those of keys and of values wait for nothing of each other.
        let slice = slice_chunks([row.chunks; 2], self.plan.shape.rows_per_layer(), workgroup).max(row.sector);
        let slice = even_slice(row.chunks, slice);
        let module = Module::CompactBands { vec4: row.words.is_none(), pair: draft.source != draft.target };
        let mut constants = vec![
            ("WG_SIZE", f64::from(workgroup)),
            ("KEY_CHUNKS", f64::from(row.chunks)),
            ("KEY_LANES", f64::from(row.lanes)),
            ("KEY_SLICE", f64::from(slice)),
        ];
        constants.extend(row.words.map(|words| ("KEY_WORDS", f64::from(words))));
        let entry = if walks { "walk_band" } else { "move_pair" };
        let pipeline = self.kernels().pipeline(module, entry, &constants, checks);
        if walks {
            return (pipeline, row.chunks.div_ceil(slice));
        }
        // No pair moves more rows than the shorter of its bands has; a dispatch goes round where it moves more.
        let slots = |s: &Band| s.end_slot - s.first_slot;
        let most = slots(&draft.source).min(slots(&draft.target));
        (pipeline, most.div_ceil(WORKGROUP / row.lanes * 4).min(capabilities.max_workgroups))
    }
}
