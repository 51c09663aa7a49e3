//! external: one order key a token, from a score that the caller has computed.
//! Source: the monotone map of IEEE 754 numbers to integers, as in M. Herf, "Radix Tricks", 2001; the scores are the
//!   caller's, of any method. Reference: src/reference/external.rs, exact.
//! Bindings: shared/score_rows.wgsl, and
//!   1 scores read_write u32 words, by strides (shared/address_strided.wgsl): f32 scores, or order keys with ORDER_KEYS
//! Entry points: score · dispatch (num_rows, ceil(max_len / TILE), 1) · none
//! Overrides: WG_SIZE = 256; TILE = 256; HISTOGRAM = false; ORDER_KEYS = false
//! Workgroup bytes: 8192 with HISTOGRAM
//! Algorithm: an invocation a token. A score's bits become an integer of the same order: the sign bit set where it is
//!   positive, all bits turned where it is negative.
//! Invariants: scores of tokens past the length are not read. -0 equals +0; NaN comes last in every direction and sets the
//!   status bit; infinities are scores. Order keys keep their value, 0 for what must stay, in the other direction from
//!   the other end.

override ORDER_KEYS: bool = false;

@group(0) @binding(1) var<storage, read_write> scores: array<u32>;

const LOWEST: u32 = 0x007fffffu; // of -infinity
const SIGN: u32 = 0x80000000u;

// Rank of an f32 among all: 0 for -infinity.
fn rank_of(bits: u32) -> u32 {
    let positive = select(bits, 0u, bits == SIGN);
    return select(positive | SIGN, ~positive, positive >= SIGN) - LOWEST;
}

fn key_of(r: Row, slot: u32, word: u32) -> u32 {
    if !ORDER_KEYS {
        return order_key(r, slot, rank_of(word), (word & 0x7fffffffu) > INFINITY_BITS);
    }
    if word == 0u {
        return 0u;
    }
    return order_key(r, slot, min(word, NAN_ORDER_KEY) - 1u, false);
}

@compute @workgroup_size(WG_SIZE)
fn score(@builtin(workgroup_id) grid: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let wg = grid.yxz;
    let r = scored_row(wg.y);
    let place = place_of_row(r);
    if wg.x + index == 0u {
        write_note(wg.y, r);
    }
    start_histogram(index);
    for (var slot = wg.x * TILE + index; slot < min(r.len, (wg.x + 1u) * TILE); slot += WG_SIZE) {
        write_key(wg.y, slot, key_of(r, slot, scores[token_base(params.keys, place, slot)]));
    }
    flush_histogram(wg, index);
}
