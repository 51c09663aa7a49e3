//! order: order keys of a row from the norms in the cache state, so that no key is read.
//! Source: the norms of keys do not change while they are cached, so scores can be kept as in KV-Compress,
//!   https://arxiv.org/abs/2410.00161. Reference: src/reference/key_norm.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 state_meta read u32, by StateLayout
//!   2 positions read u32 [row, capacity] original position
//!   3 key_norms read_write u32 [row, capacity] squared norm, f32 bits
//!   4 order_keys read_write u32 [row, order_stride]
//!   5 norm_copies read_write u32 [row, order_stride] squared norm, f32 bits (Positional)
//!   6 status read_write atomic u32 [layer] sticky bits
//!   7 histogram read_write atomic u32 [row, histogram_stride] counts of first digits
//! Entry points: order · dispatch (ceil(max_len / (4 * WG_SIZE)), num_rows, 1) · none
//!   count_order · dispatch (ceil(max_len / (4 * ROUNDS * WG_SIZE)), num_rows, 1) · none: counts first digits too
//! Overrides: WG_SIZE = 256; ROUNDS = 1
//! Workgroup bytes: 8196 of count_order, of order none
//! Algorithm: an invocation takes four tokens at a time. Positional compactions move norms from the copies, since a norm's
//!   new slot may be another's old one. Where count_order counts, the radix selector need not read order keys for that.
//! Invariants: a token without a norm counts as protected, is marked so that it stays known as such when it moves, and
//!   sets a status bit: what has not been judged is not dropped. Inactive rows are not touched.

struct Params {
    state: StateLayout,
    first_row: u32,     // compressed layer * rows_per_layer + row of row 0 here
    first_layer: u32,   // the state's layer of compressed layer 0, were there no gap; modulo 2^32
    order_stride: u32,  // words
    direction: u32,     // 0 lowest, 1 highest, 2 random
    seed_low: u32,
    seed_high: u32,
    sinks: u32,         // tokens
    recent: u32,        // tokens
    keep_copies: u32,   // 1: write norm_copies
    share_low: u32,     // share of the length that `recent` is at most, times 2^40
    share_high: u32,    // NO_SHARE: no such bound
    histogram_stride: u32, // words
    digit_shift: u32,   // of first digits
    digit_window: u32,  // first | len << 16
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> key_norms: array<u32>;
@group(0) @binding(4) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> norm_copies: array<u32>;
@group(0) @binding(6) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read_write> histogram: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;
override ROUNDS: u32 = 1u; // of four tokens an invocation, in count_order
const HISTOGRAM: bool = true; // of what count_order counts

// A norm that is not known.
const NO_NORM: u32 = 0xffffffffu;

struct OrderedRow {
    row: Row,
    len: u32,    // 0 of an inactive row
    scored: u32, // tokens that have a norm
}

fn ordered_row(local_row: u32) -> OrderedRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    let layer = params.first_layer + layer_row.quotient;
    let row = layer_row.rest;
    let r = load_row(params.state, layer, row);
    let scored = state_meta[params.state.scored_base + layer * params.state.rows_per_layer + row];
    return OrderedRow(r, select(0u, r.len, r.active_row), scored);
}

// A slot's norm, of a token that none was taken of NO_NORM; nothing beyond the row is read.
fn norm_of(o: OrderedRow, slot: u32) -> u32 {
    if slot < min(o.scored, o.len) {
        return key_norms[o.row.positions_base + slot];
    }
    return NO_NORM;
}

// Writes what a slot of this norm has, and gives its order key.
fn order_slot(o: OrderedRow, local_row: u32, slot: u32, norm: u32) -> u32 {
    let r = o.row;
    var key = 0u;
    if norm == NO_NORM {
        key_norms[r.positions_base + slot] = NO_NORM;
        atomicOr(&status[r.layer], STATUS_NORM_MISSING);
    } else {
        key = order_key(r, slot, norm);
        if norm >= INFINITY_BITS {
            atomicOr(&status[r.layer], STATUS_NON_FINITE_KEY);
        }
    }
    let ix = local_row * params.order_stride + slot;
    order_keys[ix] = key;
    if params.keep_copies == 1u {
        norm_copies[ix] = norm;
    }
    return key;
}

@compute @workgroup_size(WG_SIZE)
fn order(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let o = ordered_row(wg.y);
    for (var i = 0u; i < 4u; i++) {
        let slot = (wg.x * 4u + i) * WG_SIZE + index;
        if slot < o.len {
            _ = order_slot(o, wg.y, slot, norm_of(o, slot));
        }
    }
}

fn count_slot(o: OrderedRow, local_row: u32, slot: u32, norm: u32) {
    if slot < o.len {
        count_key(order_slot(o, local_row, slot, norm));
    }
}

@compute @workgroup_size(WG_SIZE)
fn count_order(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let o = ordered_row(wg.y);
    start_histogram(index);
    for (var round = 0u; round < ROUNDS; round++) {
        // Four norms are asked for before the first is needed.
        let slot = (wg.x * ROUNDS + round) * 4u * WG_SIZE + index;
        let a = norm_of(o, slot);
        let b = norm_of(o, slot + WG_SIZE);
        let c = norm_of(o, slot + 2u * WG_SIZE);
        let d = norm_of(o, slot + 3u * WG_SIZE);
        count_slot(o, wg.y, slot, a);
        count_slot(o, wg.y, slot + WG_SIZE, b);
        count_slot(o, wg.y, slot + 2u * WG_SIZE, c);
        count_slot(o, wg.y, slot + 3u * WG_SIZE, d);
    }
    flush_histogram(wg, index);
}
