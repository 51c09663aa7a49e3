// Rows whose slots are chosen in workgroup memory: the choice, the moves, and the state that they leave. The module gives
// bindings and overrides, and of norms that move along MOVES_NORMS, norm_at and store_norm.

const BY_TILE: bool = false;

// What of a row is moved.
struct Moves {
    first_moved: u32, // positional: first rank whose slot is not its rank
    num_moved: u32,   // fill: rows to move
    budget: u32,
}

var<workgroup> wg_row: SelectRow;
var<workgroup> wg_moves: Moves;
var<workgroup> wg_status: atomic<u32>;

fn rule_of(layer_ix: u32, row: u32) -> RowRule {
    let heads = params.state.num_kv_heads;
    return rules[params.first_rule + layer_ix * heads + divided(row, heads).rest];
}

fn select_row_of(local_row: u32) -> SelectRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    var s: SelectRow;
    s.rule = rule_of(layer_row.quotient, layer_row.rest);
    s.row = load_row(params.state, params.layer + layer_row.quotient, layer_row.rest);
    return s;
}

fn place_of_row(t: TensorLayout, local_row: u32) -> Place {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    return place_of(t, layer_row.quotient, layer_row.rest, params.state.num_kv_heads);
}

fn note_first_moved(local_row: u32, rank: u32) {
    wg_moves.first_moved = rank;
}

fn note_num_moved(local_row: u32, count: u32) {
    wg_moves.num_moved = count;
}

// Nobody asks later which slots were kept.
fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
}

fn hole_at(local_row: u32, j: u32) -> u32 {
    return staged(j);
}

// Movers were staged behind the kept slots of the front, which are the rest of the budget.
fn mover_at(local_row: u32, len: u32, num_moved: u32, j: u32) -> u32 {
    return staged(num_staged() - 1u - (wg_moves.budget - num_moved + j));
}

fn kept_at(local_row: u32, rank: u32) -> u32 {
    return staged(rank);
}

// Chooses what stays of a row whose keys the invocations hold, and stages its slots; `left_out` parts are a scout's.
fn select_slots(index: u32, local_row: u32, k: HeldKeys, row: SelectRow, left_out: u32) -> SelectRow {
    let s = select_in_row(index, k, row, left_out);
    if index == 0u {
        wg_moves = Moves(s.budget, 0u, s.budget);
    }
    var keys = k.first;
    var before = vec2<u32>(0u);
    for (var t = 0u; t < tiles_held(); t++) {
        let counts = stage_tile(index, local_row, s, keys, t * 8u * WG_SIZE, before.x, before.y).scanned.total;
        before += vec2<u32>(counts & 0xffffu, counts >> 16u);
        keys = k.second;
    }
    return s;
}

fn key_slices() -> u32 {
    return (KEY_CHUNKS + KEY_SLICE - 1u) / KEY_SLICE;
}

fn value_slices() -> u32 {
    return (VALUE_CHUNKS + VALUE_SLICE - 1u) / VALUE_SLICE;
}

// All of a row's keys and values.
fn move_whole(local_row: u32, index: u32, len: u32, moves: Moves) {
    if IN_ORDER {
        for (var slice = 0u; slice < key_slices(); slice++) {
            walk_keys(local_row, slice, index, moves.budget, moves.first_moved);
        }
        for (var slice = 0u; slice < value_slices(); slice++) {
            walk_values(local_row, slice, index, moves.budget, moves.first_moved);
        }
    } else {
        fill_keys_part(local_row, 0u, 1u, index, len, moves.num_moved);
        fill_values_part(local_row, 0u, 1u, index, len, moves.num_moved);
    }
}

// Positional: kept positions go to their ranks, and norms with them, a tile of loads, a barrier, the stores.
fn walk_positions(index: u32, r: Row, budget: u32) {
    for (var first = 0u; first < budget; first += WG_SIZE) {
        let j = min(first + index, budget - 1u);
        let slot = staged(j);
        let position = position_of(r, slot);
        let norm = norm_at(r, slot);
        storageBarrier();
        if first + index < budget {
            positions[r.positions_base + j] = position;
            store_norm(r, j, norm);
        }
    }
}

// Fill: positions of the slots that keep theirs, those of holes too, and then again of the holes those of their movers.
fn fill_positions(local_row: u32, index: u32, r: Row, moves: Moves) {
    for (var slot = r.compacted + index; slot < moves.budget; slot += WG_SIZE) {
        positions[r.positions_base + slot] = position_of(r, slot);
    }
    storageBarrier();
    for (var j = index; j < moves.num_moved; j += WG_SIZE) {
        let mover = mover_at(local_row, r.len, moves.num_moved, j);
        let hole = hole_at(local_row, j);
        positions[r.positions_base + hole] = position_of(r, mover);
        store_norm(r, hole, norm_at(r, mover));
    }
}

// The row's state; `bits` for its layer's status. The row has tokens and is active.
fn finish_row(s: SelectRow, bits: u32) {
    let state_row = s.row.layer * params.state.rows_per_layer + s.row.row;
    state_meta[params.state.lengths_base + state_row] = s.budget;
    // A row that keeps all is as it was, so that appended tokens may still be taken back.
    state_meta[params.state.compacted_base + state_row] = select(s.budget, s.row.compacted, s.budget == s.row.len);
    state_meta[params.state.scored_base + state_row] = select(0u, s.budget, MOVES_NORMS);
    if bits != 0u {
        atomicOr(&status[s.row.layer], bits);
    }
}

// `r` is the row of `s`, known to be the same for the workgroup; `bits` are its score's.
fn finish(local_row: u32, index: u32, r: Row, s: SelectRow, moves: Moves, bits: u32) {
    if !r.active_row || r.len == 0u {
        if s.row.over_capacity {
            atomicOr(&status[s.row.layer], STATUS_LENGTH_OVER_CAPACITY);
        }
        return;
    }
    if MOVES_NORMS {
        // Some norms were stored as they were read.
        storageBarrier();
    }
    if IN_ORDER {
        walk_positions(index, r, moves.budget);
    } else {
        fill_positions(local_row, index, r, moves);
    }
    if index == 0u {
        finish_row(s, status_bits(s) | bits);
    }
}
