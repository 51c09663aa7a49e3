//! row_cached: rows that workgroup memory can select from, whose keys' norms the cache state holds: a compression in one
//!   dispatch, a workgroup to a row.
//! Source: order.wgsl, radix.wgsl, compact.wgsl and state.wgsl, whose parts these are. Reference: src/reference/key_norm.rs,
//!   src/reference/top_k.rs and src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params (shared/row_params.wgsl)
//!   1 keys read_write u32 words, addressed by shared/address_strided.wgsl; of layers in arrays group 1, binding 0
//!   2 values read_write u32 words, likewise, in arrays binding 1
//!   3 state_meta read_write u32, by StateLayout
//!   4 positions read_write u32 [row, capacity] original position
//!   5 key_norms read_write u32 [row, capacity] squared norm, f32 bits
//!   7 status read_write atomic u32 [layer] sticky bits
//!   8 rules read RowRule [compressed layer, head]
//! Entry points: compress_cached · dispatch (1, SCOUTS + num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens, or
//!   twice as many with PAIR_WORDS; longer ones stay as they are
//! Overrides: WG_SIZE = 256, or 512 or 1024; KEY_CHUNKS, VALUE_CHUNKS = 16, in 1..=128; KEY_LANES, VALUE_LANES = 16, in 1..=48;
//!   KEY_SLICE, VALUE_SLICE = 16, chunks of a column slice, at most WG_SIZE; PACED = false; IN_ORDER = false; PAIR_WORDS = 0,
//!   or half the most tokens of a row, at most 8 * WG_SIZE; SCOUTS = 0, rows of the grid that shared/scout.wgsl speaks of;
//!   KEY_WORDS, VALUE_WORDS = 33, where they are moved by words; NUM_LAYERS = 1, in the arrays
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 256; the first is at least 4 * PAIR_WORDS
//! Algorithm: a decode step keeps most of a row, so that little is moved and nothing is worth a second dispatch: norms become
//!   order keys in registers, and the workgroup that has chosen moves.
//! Invariants: nobody else touches the row, so barriers of the workgroup order all that it reads and writes. A token without
//!   a norm counts as protected, is marked so that it stays known as such when it moves, and sets a status bit: what has not
//!   been judged is not dropped. Inactive rows are not touched.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read_write> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> key_norms: array<u32>;
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read> rules: array<RowRule>;

override WG_SIZE: u32 = 256u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override VALUE_CHUNKS: u32 = 16u;
override VALUE_LANES: u32 = 16u;
override KEY_SLICE: u32 = 16u;
override VALUE_SLICE: u32 = 16u;
override KEY_WORDS: u32 = 33u; // of keys that are moved by words
override VALUE_WORDS: u32 = 33u; // likewise
override PACED: bool = false; // the stores of a tile of a walk begin together
override NUM_LAYERS: u32 = 1u; // in arrays of buffers
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes
override SCOUTS: u32 = 0u; // rows of the grid
override PAIR_WORDS: u32 = 0u; // words to stage two slots each of rows of two tiles, 0 of rows of one

const SLOT_WORDS: u32 = 0u;
const MOVES_NORMS: bool = true;
// A norm that is not known.
const NO_NORM: u32 = 0xffffffffu;

var<workgroup> wg_scored: u32; // tokens of the row that have a norm

fn norm_at(r: Row, slot: u32) -> u32 {
    return key_norms[r.positions_base + slot];
}

fn store_norm(r: Row, slot: u32, norm: u32) {
    key_norms[r.positions_base + slot] = norm;
}

// Norms of slots 8 * eight …, whatever the row's length, so that the loads need not wait for it.
fn load_norms(local_row: u32, eight: u32) -> Keys {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    let state_row = (params.layer + layer_row.quotient) * params.state.rows_per_layer + layer_row.rest;
    let base = params.state.positions_base + state_row * params.state.capacity;
    let slots = vec4<u32>(0u, 1u, 2u, 3u) + eight * 8u;
    let last = vec4<u32>(params.state.capacity - 1u);
    let low = min(slots, last) + base;
    let high = min(slots + 4u, last) + base;
    return Keys(
        vec4<u32>(key_norms[low.x], key_norms[low.y], key_norms[low.z], key_norms[low.w]),
        vec4<u32>(key_norms[high.x], key_norms[high.y], key_norms[high.z], key_norms[high.w]),
    );
}

// The order key of a token of the row.
fn key_of_norm(r: Row, slot: u32, norm: u32, scored: u32) -> u32 {
    if slot >= scored || norm == NO_NORM {
        store_norm(r, slot, NO_NORM);
        atomicOr(&wg_status, STATUS_NORM_MISSING);
        return 0u;
    }
    if norm >= INFINITY_BITS {
        atomicOr(&wg_status, STATUS_NON_FINITE_KEY);
    }
    return order_key(r, slot, norm);
}

// Order keys of eight norms; pads beyond the row.
fn keys_of_norms(r: Row, len: u32, scored: u32, eight: u32, norms: Keys) -> Keys {
    var k = norms;
    for (var i = 0u; i < params.keys_held; i++) {
        let slot = eight * 8u + i;
        var key = PAD_KEY;
        if slot < len {
            key = key_of_norm(r, slot, k.low.x, scored);
        }
        k.low.x = key;
        k = rotated(k);
    }
    return k;
}

fn compress(grid: vec3<u32>, index: u32) {
    let wg = behind_scouts(grid);
    var norms: HeldKeys;
    if !is_scout(grid) {
        norms.first = load_norms(wg.y, index);
        if PAIR_WORDS > 0u {
            norms.second = load_norms(wg.y, WG_SIZE + index);
        }
    }
    if index == 0u {
        wg_row = SelectRow();
        wg_scored = 0u;
        atomicStore(&wg_status, 0u);
        if !is_scout(grid) {
            wg_row = select_row_of(wg.y);
            wg_row.row = leave_longer(wg_row.row, num_staged());
            wg_scored = state_meta[params.state.scored_base + wg_row.row.layer * params.state.rows_per_layer + wg_row.row.row];
        }
    }
    start_selection(index);
    let row = workgroupUniformLoad(&wg_row);
    let r = row.row;
    // Of a row that is left nothing is chosen.
    let len = select(0u, r.len, r.active_row);
    let scored = wg_scored;
    var k: HeldKeys;
    k.first = keys_of_norms(r, len, scored, index, norms.first);
    if PAIR_WORDS > 0u {
        k.second = keys_of_norms(r, len, scored, WG_SIZE + index, norms.second);
    }
    let s = select_slots(index, wg.y, k, row, parts_left_out(grid, 1u, NUM_PARTS));
    let moves = workgroupUniformLoad(&wg_moves);
    if is_scout(grid) {
        return;
    }
    move_whole(wg.y, index, r.len, moves);
    finish(wg.y, index, r, s, moves, atomicLoad(&wg_status));
}
