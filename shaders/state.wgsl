//! state: what a compression leaves in the cache state: positions, norms, lengths and status.
//! Source: the state of a compacted cache (positions, lengths) as in KV-Compress, https://arxiv.org/abs/2410.00161.
//!   Reference: src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params (shared/top_k_params.wgsl)
//!   1 state_meta read_write u32, by StateLayout
//!   2 positions read_write u32 [row, capacity] original position
//!   3 lists read u32 [row, lists_stride]
//!   4 row_infos read RowInfo [row]
//!   5 status read_write atomic u32 [layer] sticky bits
//!   6 key_norms read_write u32 [row, capacity] squared norm, f32 bits (CACHED)
//!   7 norm_copies read u32 [row, order_stride] squared norm, f32 bits (CACHED, Positional)
//! Entry points: finish · dispatch (any, num_rows, 1) · none: goes round for more slots
//!   mark_scored · dispatch (ceil(num_rows / WG_SIZE), ceil(max_new / SCORE_TILE), 1) · none
//! Overrides: WG_SIZE = 256; CACHED = false; SCORE_TILE = 64
//! Workgroup bytes: 0
//! Algorithm: fill: the positions of moved rows go from the mover's slot to the hole's, and slots that were kept where they
//!   are get theirs stored. Positional: the staged positions are copied to the front. Norms go with positions. Then the
//!   row's length becomes its budget.
//!   mark_scored moves `scored` on by as many tokens as the score dispatch before it covered.
//! Invariants: fill reads positions at or beyond the budget and writes below it. Lengths are read from row_infos alone,
//!   so that the one invocation that writes state_meta races with nobody. Where norms are not moved, none counts as known.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read_write> positions: array<u32>;
@group(0) @binding(3) var<storage, read> lists: array<u32>;
@group(0) @binding(4) var<storage, read> row_infos: array<RowInfo>;
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(6) var<storage, read_write> key_norms: array<u32>;
@group(0) @binding(7) var<storage, read> norm_copies: array<u32>;

override WG_SIZE: u32 = 256u;
override CACHED: bool = false;
override SCORE_TILE: u32 = 64u; // tokens a workgroup of the score dispatch covers

const POSITIONAL: u32 = 1u;

// From the copy of a listed slot's norm.
fn place_norm(to: u32, local_row: u32, listed_ix: u32) {
    if CACHED {
        key_norms[to] = norm_copies[local_row * params.order_stride + lists[listed_ix]];
    }
}

fn move_norm(to: u32, source: u32) {
    if CACHED {
        key_norms[to] = key_norms[source];
    }
}

fn finish_slot(local_row: u32, info: RowInfo, state_row: u32, j: u32) {
    let positions_base = params.state.positions_base + state_row * params.state.capacity;
    let list_base = local_row * params.lists_stride;
    if params.order == POSITIONAL {
        positions[positions_base + j] = lists[list_base + params.staged_offset + j];
        place_norm(positions_base + j, local_row, list_base + j);
        return;
    }
    if j >= compacted_of(info) {
        let kept = lists[list_base + params.staged_offset + j / 8u] >> (j % 8u);
        if (kept & 1u) != 0u {
            positions[positions_base + j] = num_seen_of(info) - (len_of(info) - j);
        }
    }
    if j < num_moved_of(info) {
        let hole = lists[list_base + j];
        let mover = lists[list_base + len_of(info) - num_moved_of(info) + j];
        var position = num_seen_of(info) - (len_of(info) - mover);
        if mover < compacted_of(info) {
            position = positions[positions_base + mover];
        }
        positions[positions_base + hole] = position;
        move_norm(positions_base + hole, positions_base + mover);
    }
}

fn finish_row(info: RowInfo, state_row: u32, layer: u32) {
    state_meta[params.state.lengths_base + state_row] = budget_of(info);
    // A row that keeps all is as it was, so that appended tokens may still be taken back.
    state_meta[params.state.compacted_base + state_row] =
        select(budget_of(info), compacted_of(info), budget_of(info) == len_of(info));
    state_meta[params.state.scored_base + state_row] = select(0u, budget_of(info), CACHED);
    if status_of(info) != 0u {
        atomicOr(&status[layer], status_of(info));
    }
}

@compute @workgroup_size(WG_SIZE)
fn finish(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let info = row_infos[params.first_info + wg.y];
    let layer_row = divided(params.first_row + wg.y, params.state.rows_per_layer);
    let layer = params.first_layer + layer_row.quotient;
    if !is_active(info) || len_of(info) == 0u {
        if wg.x == 0u && index == 0u && status_of(info) != 0u {
            atomicOr(&status[layer], status_of(info));
        }
        return;
    }
    let state_row = layer * params.state.rows_per_layer + layer_row.rest;
    for (var j = wg.x * WG_SIZE + index; j < budget_of(info); j += num.x * WG_SIZE) {
        finish_slot(wg.y, info, state_row, j);
    }
    if wg.x == 0u && index == 0u {
        finish_row(info, state_row, layer);
    }
}

@compute @workgroup_size(WG_SIZE)
fn mark_scored(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) num: vec3<u32>) {
    if id.y > 0u || id.x >= params.num_rows {
        return;
    }
    let s = params.state;
    let layer_row = divided(params.first_row + id.x, s.rows_per_layer);
    let layer = params.first_layer + layer_row.quotient;
    let row = layer_row.rest;
    if state_meta[s.inactive_base + layer * s.inactive_stride + divided(row, s.num_kv_heads).quotient] != 0u {
        return;
    }
    let state_row = layer * s.rows_per_layer + row;
    let len = min(state_meta[s.lengths_base + state_row], s.capacity);
    let scored = min(state_meta[s.scored_base + state_row], len);
    state_meta[s.scored_base + state_row] = min(len, scored + num.y * SCORE_TILE);
}
