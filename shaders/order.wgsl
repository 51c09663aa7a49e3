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
//! Entry points: order · dispatch (ceil(max_len / (4 * WG_SIZE)), num_rows, 1) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 0
//! Algorithm: an invocation takes four tokens. Positional compactions move norms from the copies, since a norm's new slot
//!   may be another's old one.
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
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> key_norms: array<u32>;
@group(0) @binding(4) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> norm_copies: array<u32>;
@group(0) @binding(6) var<storage, read_write> status: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;
// A norm that is not known.
const NO_NORM: u32 = 0xffffffffu;

fn order_slot(r: Row, local_row: u32, slot: u32, scored: u32) {
    let norm_ix = r.positions_base + slot;
    var norm = NO_NORM;
    if slot < scored {
        norm = key_norms[norm_ix];
    } else {
        key_norms[norm_ix] = NO_NORM;
    }
    var key = 0u;
    if norm == NO_NORM {
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
}

@compute @workgroup_size(WG_SIZE)
fn order(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let global_row = params.first_row + wg.y;
    let layer_row = divided(global_row, params.state.rows_per_layer);
    let layer = params.first_layer + layer_row.quotient;
    let row = layer_row.rest;
    let r = load_row(params.state, layer, row);
    let scored = state_meta[params.state.scored_base + layer * params.state.rows_per_layer + row];
    let len = select(0u, r.len, r.active_row);
    for (var i = 0u; i < 4u; i++) {
        let slot = (wg.x * 4u + i) * WG_SIZE + index;
        if slot < len {
            order_slot(r, wg.y, slot, scored);
        }
    }
}
