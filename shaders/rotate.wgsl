//! rotate: turns keys by RoPE from the positions that they were made for to those that follow their slots.
//! Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
//!   https://arxiv.org/abs/2104.09864, eq. 15; rotations add, so one by the difference of positions moves a key.
//!   Reference: src/reference/rotate.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write u32 words of f32|f16|bf16, by strides
//!   2 state_meta read u32, by StateLayout
//!   3 positions read u32 [row, capacity] original position
//!   4 frequencies read vec2<u32> [pair]: turns a position, times 2^64 (low, high)
//! Entry points: rotate · dispatch (ceil(max_len / TILE), num_rows, 1) · none
//! Overrides: WG_SIZE = 256; TILE = 64; INTERLEAVED = false
//! Workgroup bytes: 0
//! Algorithm: an invocation takes a word (two 16-bit elements or one of 32) and the word of the other halves of its pairs;
//!   with INTERLEAVED two elements in a row. The phase is the position's difference times the frequency as integers, modulo
//!   a turn, so that no difference is too large for it; sine and cosine are polynomials on an eighth of a turn.
//! Invariants: tokens that keep their position are not written. A pair with an infinity or NaN keeps its bits; near the
//!   end of f16 a turned element may become infinite. Products
//!   lose their last bit before they are added (`materialised`), so the bits are the same on every device; elements are
//!   rounded to even by integer arithmetic.

struct Params {
    state: StateLayout,
    num_rows: u32,        // rows of this window
    first_row: u32,       // row of the layer that is row 0 here
    layer: u32,
    batch_stride: u32,    // words, modulo 2^32
    head_stride: u32,     // words
    token_stride: u32,    // words
    base: u32,            // words, modulo 2^32: of sequence `first_sequence`, head 0, token 0
    first_sequence: u32,
    units: u32,           // words or pairs of words of a token
    pair_offset: u32,     // words between the halves of a pair
    unit_words: u32,      // words from one unit to the next
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> frequencies: array<vec2<u32>>;

override WG_SIZE: u32 = 256u;
override TILE: u32 = 64u;
override INTERLEAVED: bool = false;

// Radians of 2^-26 turns.
const STEP: f32 = 9.362675e-8;

// Without its last bit: no compiler can fuse a product of which a bit is missing with what is added to it.
fn materialised(x: vec2<f32>) -> vec2<f32> {
    return bitcast<vec2<f32>>(bitcast<vec2<u32>>(x) & vec2<u32>(0xfffffffeu));
}

// (sine, cosine) of a phase in 2^-32 turns.
fn sine_cosine(phase: u32) -> vec2<f32> {
    let quadrant = (phase + 0x20000000u) >> 30u;
    let x = materialised(vec2<f32>(f32(bitcast<i32>(phase - (quadrant << 30u)) >> 6u) * STEP)).x;
    let square = materialised(vec2<f32>(x * x)).x;
    var p = vec2<f32>(-2.5052108e-8, -2.755732e-7);
    p = vec2<f32>(2.7557319e-6, 2.4801588e-5) + materialised(p * square);
    p = vec2<f32>(-1.9841270e-4, -1.3888889e-3) + materialised(p * square);
    p = vec2<f32>(8.333333e-3, 4.1666667e-2) + materialised(p * square);
    p = vec2<f32>(-0.16666667, -0.5) + materialised(p * square);
    let small = vec2<f32>(x, 1.0) + materialised(vec2<f32>((x * square) * p.x, square * p.y));
    let turned = select(small, vec2<f32>(small.y, -small.x), (quadrant & 1u) == 1u);
    return select(turned, -turned, quadrant >= 2u);
}

fn is_finite(pair: vec2<f32>) -> bool {
    let exponents = bitcast<vec2<u32>>(pair) & vec2<u32>(0x7f800000u);
    return all(exponents != vec2<u32>(0x7f800000u));
}

// A pair of elements turned by a number of positions.
fn turned_pair(pair: vec2<f32>, pair_ix: u32, distance: u32, backwards: bool) -> vec2<f32> {
    let frequency = frequencies[pair_ix];
    let phase = multiply_wide(distance, frequency.x).x + distance * frequency.y;
    let sc = sine_cosine(select(phase, 0u - phase, backwards));
    let straight = materialised(pair * sc.y);
    let crossed = materialised(pair.yx * sc.x);
    return vec2<f32>(straight.x - crossed.x, straight.y + crossed.y);
}

fn rotate_unit(base: u32, unit: u32, distance: u32, backwards: bool) {
    let first = base + unit * params.unit_words;
    let second = first + params.pair_offset;
    let words = vec2<u32>(keys[first], keys[second]);
    if ELEMENTS_A_WORD == 1u {
        let pair = bitcast<vec2<f32>>(words);
        let turned = turned_pair(pair, unit, distance, backwards);
        if is_finite(pair) {
            keys[first] = bitcast<u32>(turned.x);
            keys[second] = bitcast<u32>(turned.y);
        }
    } else if INTERLEAVED {
        let pair = unpack_pair(words.x);
        if is_finite(pair) {
            keys[first] = pack_pair(turned_pair(pair, unit, distance, backwards));
        }
    } else {
        let a = unpack_pair(words.x);
        let b = unpack_pair(words.y);
        let low = turned_pair(vec2<f32>(a.x, b.x), unit * 2u, distance, backwards);
        let high = turned_pair(vec2<f32>(a.y, b.y), unit * 2u + 1u, distance, backwards);
        let mask = select(0u, 0xffffu, is_finite(vec2<f32>(a.x, b.x)))
            | select(0u, 0xffff0000u, is_finite(vec2<f32>(a.y, b.y)));
        let turned = vec2<u32>(pack_pair(vec2<f32>(low.x, high.x)), pack_pair(vec2<f32>(low.y, high.y)));
        let kept = (words & vec2<u32>(~mask)) | (turned & vec2<u32>(mask));
        keys[first] = kept.x;
        keys[second] = kept.y;
    }
}

@compute @workgroup_size(WG_SIZE)
fn rotate(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = params.first_row + wg.y;
    let r = load_row(params.state, params.layer, row);
    let sequence = row / params.state.num_kv_heads;
    let num_seen = longest_row(params.state, params.layer, sequence);
    let row_base = params.base + (sequence - params.first_sequence) * params.batch_stride
        + row % params.state.num_kv_heads * params.head_stride;
    let len = select(0u, r.len, r.active_row);
    for (var i = index; i < TILE * params.units; i += WG_SIZE) {
        let slot = wg.x * TILE + i / params.units;
        if slot < len {
            let before = position_of(r, slot);
            let after = num_seen - (r.len - slot);
            if before != after {
                let backwards = after < before;
                let distance = select(after - before, before - after, backwards);
                rotate_unit(row_base + slot * params.token_stride, i % params.units, distance, backwards);
            }
        }
    }
}
