//! value_key_ratio: one order key a token, from the squared ratio of its value's L2 norm to its key's.
//! Source: the token importance of PagedEviction, https://arxiv.org/abs/2509.04377. Reference:
//!   src/reference/value_key_ratio.rs, exact.
//! Bindings: shared/score_rows.wgsl, and
//!   1 keys read_write u32 words of f32|f16|bf16|f8|q8_0|q4_0|int8, addressed by shared/address_*.wgsl: the values with VALUES
//!   8 page_table read_write u32 [sequence, table_stride] page ids; of a paged cache alone
//! Entry points: score · dispatch (num_rows, ceil(max_len / TILE), 1), with HISTOGRAM any number of parts in place of the tiles
//!   · needs none | subgroups
//! Overrides: WG_SIZE = 256; LANES = 16, a power of two in 2..=32; CHUNKS = 16, in 1..=128; TILE = 256, a multiple of
//!   WG_SIZE / LANES * 4; HISTOGRAM = false; VALUES = false; PAGE_SIZE = 16; KEY_WORDS = 33
//! Workgroup bytes: 8192 with HISTOGRAM, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: two dispatches of the norm of key_norm. With VALUES it runs over the values and leaves squared norms in
//!   `order_keys`; then it runs over the keys and multiplies by the inverse of the key's norm, twice.
//! Invariants: a token whose key or value has a NaN or a squared norm that overflows comes last in every direction; a key
//!   whose squared norm is below 2^-126 makes the ratio infinite. Products below 2^-126 count as zero.

override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override VALUES: bool = false;

const SCOUTS: u32 = 0u;
const BAD: u32 = 0xffffffffu;
const MIN_NORMAL_BITS: u32 = 0x00800000u;

// Every token is scored.
fn first_slot(r: Row) -> u32 {
    return 0u;
}

fn without_subnormals(x: f32) -> f32 {
    return select(x, 0.0, bitcast<u32>(x) < MIN_NORMAL_BITS);
}

fn note_row(local_row: u32, r: Row) {
    if !VALUES {
        write_note(local_row, r);
    }
}

fn write_score(wg: vec3<u32>, r: Row, slot: u32, square: f32, nan: bool) {
    let square_bits = bitcast<u32>(square);
    let bad = nan || (square_bits & 0x7fffffffu) >= INFINITY_BITS;
    let ix = wg.y * params.order_stride + slot;
    if VALUES {
        order_keys[ix] = select(bitcast<u32>(without_subnormals(square)), BAD, bad);
    } else {
        let stored = order_keys[ix];
        let inverse = inverse_sqrt(vec4<f32>(square)).x;
        let ratio = without_subnormals(without_subnormals(bitcast<f32>(stored) * inverse) * inverse);
        let bits = select(min(bitcast<u32>(ratio), INFINITY_BITS), INFINITY_BITS, square_bits < MIN_NORMAL_BITS);
        write_key(wg.y, slot, order_key(r, slot, bits, bad || stored == BAD));
    }
}
