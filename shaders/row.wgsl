//! row: a whole compression in one dispatch, a workgroup to a row: norms, threshold, moves and state.
//! Source: key_norm.wgsl, radix.wgsl, compact.wgsl and state.wgsl, whose parts these are. Reference:
//!   src/reference/key_norm.rs, src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write vec4<u32> chunks of f32|f16|bf16, addressed by shared/address_strided.wgsl; of layers in arrays
//!     group 1, binding 0
//!   2 values read_write vec4<u32> chunks, likewise, in arrays binding 1
//!   3 state_meta read_write u32, by StateLayout
//!   4 positions read_write u32 [row, capacity] original position
//!   5 order_keys read_write u32 [row, order_stride]
//!   6 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional)
//!   7 status read_write atomic u32 [layer] sticky bits
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_row · dispatch (1, num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens
//! Overrides: WG_SIZE = 256, or 512 or 1024; LANES, KEY_LANES, VALUE_LANES = 16, a power of two in 1..=32, of the norm
//!   in 2..=32; CHUNKS, KEY_CHUNKS, VALUE_CHUNKS = 16, in 1..=128; SLICE_CHUNKS = 16, a power of two; IN_ORDER = false
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 256, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: nothing waits for another row, so where there are rows enough to fill the card, or so few tokens that
//!   launching is what takes time, one dispatch does what four did. Keys go through memory between its steps, in what
//!   the caches hold.
//! Invariants: nobody else touches the row, so barriers of the workgroup order all that it reads and writes: its order
//!   keys and lists; keys and values, read before any is moved; positions, of which those that a list names are written
//!   last; its length, which one invocation loads before all others begin and writes at the end. Of what a layer's rows
//!   share, tokens seen and activity are only read.

struct Params {
    state: StateLayout,
    keys: TensorLayout,
    values: TensorLayout,
    num_rows: u32,        // rows of this window
    first_row: u32,       // row of layer `layer` that is row 0 here
    layer: u32,
    first_sequence: u32,
    first_rule: u32,      // index of the layer's first rule
    order_stride: u32,    // words between rows of order_keys
    lists_stride: u32,    // words between rows of lists
    staged_offset: u32,   // words from a row's slots to its positions
    keys_held: u32,       // 8: keys that an invocation holds
    digit_shift: u32,     // the window of first digits
    digit_base: u32,
    direction: u32,       // 0 lowest, 1 highest, 2 random
    seed_low: u32,
    seed_high: u32,
    sinks: u32,           // tokens
    recent: u32,          // tokens
    share_low: u32,       // share of the length that `recent` is at most, times 2^40
    share_high: u32,      // NO_SHARE: no such bound
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read_write> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(6) var<storage, read_write> lists: array<u32>;
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read> rules: array<RowRule>;

override WG_SIZE: u32 = 256u;
override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override VALUE_CHUNKS: u32 = 16u;
override VALUE_LANES: u32 = 16u;
override SLICE_CHUNKS: u32 = 16u;
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes

const NAN_NORM: u32 = 0x7fc00000u;

// What of a row is moved.
struct Moves {
    first_moved: u32, // positional: first rank whose slot is not its rank
    num_moved: u32,   // fill: rows to move
    budget: u32,
}

var<workgroup> wg_row: SelectRow;
var<workgroup> wg_moves: Moves;
var<workgroup> wg_status: atomic<u32>;

fn select_row_of(local_row: u32) -> SelectRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    let layer_ix = layer_row.quotient;
    let row = layer_row.rest;
    let heads = params.state.num_kv_heads;
    var s: SelectRow;
    s.rule = rules[params.first_rule + layer_ix * heads + divided(row, heads).rest];
    s.row = load_row(params.state, params.layer + layer_ix, row);
    return s;
}

fn place_of_row(t: TensorLayout, local_row: u32) -> Place {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    return place_of(t, layer_row.quotient, layer_row.rest, params.state.num_kv_heads);
}

fn write_score(wg: vec3<u32>, r: Row, slot: u32, sum: f32, nan: bool) {
    let norm = select(min(bitcast<u32>(sum) & 0x7fffffffu, INFINITY_BITS), NAN_NORM, nan);
    if norm >= INFINITY_BITS {
        atomicOr(&wg_status, STATUS_NON_FINITE_KEY);
    }
    order_keys[wg.y * params.order_stride + slot] = order_key(r, slot, norm);
}

fn load_raw(local_row: u32, eight: u32) -> Keys {
    let first = min(eight * 8u, params.order_stride - 8u);
    let ix = local_row * params.order_stride + first;
    return Keys(
        vec4<u32>(order_keys[ix], order_keys[ix + 1u], order_keys[ix + 2u], order_keys[ix + 3u]),
        vec4<u32>(order_keys[ix + 4u], order_keys[ix + 5u], order_keys[ix + 6u], order_keys[ix + 7u]),
    );
}

fn note_first_moved(local_row: u32, rank: u32) {
    wg_moves.first_moved = rank;
}

fn note_num_moved(local_row: u32, count: u32) {
    wg_moves.num_moved = count;
}

// Every load or store of the workgroup so far comes before what follows.
fn all_done() {
    storageBarrier();
    workgroupBarrier();
}

fn fill_row(local_row: u32, index: u32, len: u32, num_moved: u32) {
    for (var first = 0u; first < num_moved; first += WG_SIZE / KEY_LANES * 4u) {
        fill_keys(local_row, first, index, len, num_moved);
    }
    for (var first = 0u; first < num_moved; first += WG_SIZE / VALUE_LANES * 4u) {
        fill_values(local_row, first, index, len, num_moved);
    }
}

fn walk_row(local_row: u32, index: u32, moves: Moves) {
    for (var slice = 0u; slice * SLICE_CHUNKS < KEY_CHUNKS; slice++) {
        walk_keys(local_row, slice, index, moves.budget, moves.first_moved);
    }
    for (var slice = 0u; slice * SLICE_CHUNKS < VALUE_CHUNKS; slice++) {
        walk_values(local_row, slice, index, moves.budget, moves.first_moved);
    }
}

// Positions go to their slots at once, so that nobody asks which slots were kept.
fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
}

// Fill: positions of the slots that keep theirs. Those of holes are written too, and again when they are filled.
fn emit_positions(index: u32, s: SelectRow) {
    if s.row.active_row && !IN_ORDER {
        for (var slot = s.row.compacted + index; slot < s.budget; slot += WG_SIZE) {
            positions[s.row.positions_base + slot] = position_of(s.row, slot);
        }
    }
}

fn finish_positions(local_row: u32, index: u32, r: Row, moves: Moves) {
    let list_base = local_row * params.lists_stride;
    if IN_ORDER && r.active_row {
        for (var j = index; j < moves.budget; j += WG_SIZE) {
            positions[r.positions_base + j] = lists[list_base + params.staged_offset + j];
        }
    }
    for (var j = index; j < moves.num_moved; j += WG_SIZE) {
        let hole = lists[list_base + j];
        let mover = lists[list_base + r.len - moves.num_moved + j];
        positions[r.positions_base + hole] = position_of(r, mover);
    }
}

fn finish_row(s: SelectRow, bits: u32) {
    if s.row.active_row && s.row.len > 0u {
        let state_row = s.row.layer * params.state.rows_per_layer + s.row.row;
        state_meta[params.state.lengths_base + state_row] = s.budget;
        state_meta[params.state.compacted_base + state_row] = s.budget;
        state_meta[params.state.scored_base + state_row] = 0u;
        if bits != 0u {
            atomicOr(&status[s.row.layer], bits);
        }
    }
}

fn compress(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
        atomicStore(&wg_status, 0u);
    }
    start_selection(index);
    var s = workgroupUniformLoad(&wg_row);
    let place = place_of_row(params.keys, wg.y);
    // An inactive sequence is not read.
    let len = select(0u, s.row.len, s.row.active_row);
    score_tokens(wg, index, s.row, place, 0u, len, len);
    all_done();
    let k = mask_keys(load_raw(wg.y, index), s.row.len, index);
    s = select_in_row(index, k, s);
    if index == 0u {
        wg_moves = Moves(s.budget, 0u, s.budget);
    }
    _ = emit_tile(index, wg.y, s, k, 0u, 0u, 0u);
    emit_positions(index, s);
    all_done();
    let moves = workgroupUniformLoad(&wg_moves);
    if IN_ORDER {
        walk_row(wg.y, index, moves);
    } else {
        fill_row(wg.y, index, s.row.len, moves.num_moved);
    }
    finish_positions(wg.y, index, s.row, moves);
    if index == 0u {
        finish_row(s, status_bits(s) | atomicLoad(&wg_status));
    }
}
