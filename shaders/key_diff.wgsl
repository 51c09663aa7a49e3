//! key_diff: one order key a token, from the cosine of its key with the mean of the row's normalised keys, or from the
//!   distance of its key to the row's mean key.
//! Source: J. Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
//!   Resource-Constrained Environments", https://arxiv.org/abs/2504.15364; CENTROID: the distance of ManifoldKV (PMLR 306).
//!   Reference: src/reference/key_diff.rs, exact.
//! Bindings: shared/score_rows.wgsl, and
//!   1 keys read_write u32 words of f32|f16|bf16|f8, addressed by shared/address_*.wgsl
//!   7 sums read_write vec4<f32> [row, sums_stride]: a sum of keys for each SUM_TILE tokens, then that of the row, then the
//!     number of tiles; with CACHED they are in the state
//!   8 page_table read_write u32 [sequence, table_stride] page ids; of a paged cache alone
//! Entry points: sum_keys · dispatch (num_rows, ceil(max_len / SUM_TILE), 1) · needs none | subgroups
//!   add_tiles · dispatch (num_rows, ceil(head_dim / 16), 1) · none
//!   score · dispatch (num_rows, ceil(max_len / TILE), 1) · needs none | subgroups
//! Overrides: WG_SIZE = 256; LANES = 16, a power of two in 2..=32; CHUNKS = 16, in 1..=128; TILE = 256, a multiple of
//!   WG_SIZE / LANES * 4; SUM_TILE = 256, likewise; HISTOGRAM = false; CENTROID = false; CACHED = false; PAGE_SIZE = 16
//! Workgroup bytes: 8192 with HISTOGRAM, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: sum_keys: LANES invocations share a token as in key_norm. They find its squared norm, leave the inverse of
//!   the norm in `order_keys`, and add the key times that inverse to sums that they keep in registers, the chunks being
//!   there still; then the workgroup adds its groups of lanes. add_tiles adds the tiles of a row. score takes the product
//!   of each key with the sum, scaled by both inverse norms: the cosine c. Its order key is made of the bits of 1 - c,
//!   which spread well where keys are alike. It walks tiles and rows from the end, where keys may be cached still.
//!   With CACHED only tokens without a score are read: they are added to the sum of all that the row has seen, dropped ones
//!   too, and scored once against it; the bits of 1 - c stay in the state.
//!   With CENTROID keys are added as they are, and score takes the squared distance to their mean.
//! Invariants: a key with a NaN or whose squared norm overflows adds nothing and comes last in every direction; one whose
//!   squared norm is below 2^-126 counts as zero: it adds nothing and its cosine is 0. The order of additions is part of
//!   the definition: tokens of a group of lanes in turn, then groups in turn, then tiles by 64 in turn, then a tree.
//!   Inverse norms as weights, and the sum as a factor, are rounded to 13 bits, so that their products with f16, bf16
//!   and f8 elements are exact and fusing them with additions changes nothing.

override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override SUM_TILE: u32 = 256u;
override CENTROID: bool = false;
override CACHED: bool = false;

@group(0) @binding(7) var<storage, read_write> sums: array<vec4<f32>>;

const BAD: u32 = 0xffffffffu;
const NAN_SCORE: u32 = 0x7fc00000u;
const MIN_NORMAL_BITS: u32 = 0x00800000u;
const TINY_BITS: u32 = 0x21800000u; // 2^-60
const SEGMENTS: u32 = 64u;

var<workgroup> wg_sums: array<vec4<f32>, WG_SIZE>;

// What an invocation keeps of a vector of the head's length: a chunk of sixteen elements, up to two of eight or four of four.
struct Quads {
    q0: vec4<f32>,
    q1: vec4<f32>,
    q2: vec4<f32>,
    q3: vec4<f32>,
}

fn no_quads() -> Quads {
    return Quads(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
}

fn quad_of(q: Quads, i: u32) -> vec4<f32> {
    return select(select(q.q0, q.q1, i == 1u), select(q.q2, q.q3, i == 3u), i >= 2u);
}

// Vectors of a token.
fn head_quads() -> u32 {
    return CHUNKS * CHUNK_QUADS;
}

fn sums_base(local_row: u32) -> u32 {
    return local_row * params.sums_stride;
}

// The first token that the dispatch scores.
fn first_slot(r: Row) -> u32 {
    if CACHED {
        return min(state_meta[params.state.scored_base + r.layer * params.state.rows_per_layer + r.row], r.len);
    }
    return 0u;
}

// Where the inverse norm of a token, and then its score, is kept.
fn score_ix(local_row: u32, r: Row, slot: u32) -> u32 {
    return select(local_row * params.order_stride, r.positions_base, CACHED) + slot;
}

// To 13 significant bits.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + vec4<u32>(0x400u)) & vec4<u32>(0xfffff800u));
}

// Inverse norms of squared ones, 0 for those that count as zero or are not finite.
fn inverse_norms(squares: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(squares);
    let none = (bits < vec4<u32>(MIN_NORMAL_BITS)) | (bits >= vec4<u32>(INFINITY_BITS));
    return select(inverse_sqrt(squares), vec4<f32>(0.0), none);
}

// How much each of four keys counts in the sum.
fn weights_of(inverses: vec4<f32>, squares: vec4<f32>) -> vec4<f32> {
    if CENTROID {
        return select(vec4<f32>(1.0), vec4<f32>(0.0), bitcast<vec4<u32>>(squares) >= vec4<u32>(INFINITY_BITS));
    }
    return rounded(inverses);
}

// What the score reads of a key's norm.
fn inverse_bits(inverse: f32, square: f32) -> u32 {
    return select(bitcast<u32>(inverse), BAD, bitcast<u32>(square) >= INFINITY_BITS);
}

// Squares of a chunk; infinity where an element is NaN, so that the key's sum tells both.
fn checked_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    let bits = bitcast<u32>(add_squares(chunk, sum));
    return bitcast<f32>(select(bits, INFINITY_BITS, nan_bits(chunk) != 0u));
}

// Adds a chunk to the sums: the invocation's first chunk, second, …
fn add_chunk(chunk: vec4<u32>, chunk_ix: u32, weight: f32, sum: Quads) -> Quads {
    var q = sum;
    let low = chunk_quad(chunk, 0u) * weight;
    let first = chunk_ix * CHUNK_QUADS;
    if first == 0u {
        q.q0 += low;
    } else if first == 1u {
        q.q1 += low;
    } else if first == 2u {
        q.q2 += low;
    } else {
        q.q3 += low;
    }
    if CHUNK_QUADS >= 2u {
        let high = chunk_quad(chunk, 1u) * weight;
        if first == 0u {
            q.q1 += high;
        } else {
            q.q3 += high;
        }
    }
    if CHUNK_QUADS == 4u {
        q.q2 += chunk_quad(chunk, 2u) * weight;
        q.q3 += chunk_quad(chunk, 3u) * weight;
    }
    return q;
}

// Adds to a score what four elements give: their product with those of the sum, or their squared distance.
fn add_quad(e: vec4<f32>, m: vec4<f32>, sum: f32) -> f32 {
    if CENTROID {
        let d = e - m;
        let s = materialised(d * d);
        return (((sum + s.x) + s.y) + s.z) + s.w;
    }
    return (((sum + e.x * m.x) + e.y * m.y) + e.z * m.z) + e.w * m.w;
}

fn score_chunk(chunk: vec4<u32>, chunk_ix: u32, m: Quads, sum: f32) -> f32 {
    if CHUNK_QUADS == 1u {
        return add_quad(chunk_quad(chunk, 0u), quad_of(m, chunk_ix), sum);
    }
    let low = add_quad(chunk_quad(chunk, 0u), quad_of(m, chunk_ix * 2u), sum);
    let both = add_quad(chunk_quad(chunk, 1u), quad_of(m, chunk_ix * 2u + 1u), low);
    if CHUNK_QUADS == 2u {
        return both;
    }
    return add_quad(chunk_quad(chunk, 3u), m.q3, add_quad(chunk_quad(chunk, 2u), m.q2, both));
}

// The row's sum as the score takes it: rounded, or the mean.
fn mean_quad(local_row: u32, quad: u32, len: u32) -> vec4<f32> {
    let sum = sums[sums_base(local_row) + params.sums_offset + quad];
    if CENTROID {
        let inverse = inverse_sqrt(vec4<f32>(f32(max(len, 1u))));
        return materialised(sum * materialised(inverse * inverse));
    }
    let r = rounded(sum);
    let magnitudes = bitcast<vec4<u32>>(r) & vec4<u32>(0x7fffffffu);
    return select(r, vec4<f32>(0.0), magnitudes < vec4<u32>(TINY_BITS));
}

fn add_squared_quad(m: vec4<f32>, sum: f32) -> f32 {
    let s = materialised(m * m);
    return (((sum + s.x) + s.y) + s.z) + s.w;
}

// Tiles that sum_keys has covered.
fn num_summed(local_row: u32) -> u32 {
    return u32(sums[sums_base(local_row) + params.sums_offset + head_quads()].x);
}

// Adds up the groups of lanes of a tile, group by group, a vector of each invocation at a time.
fn store_tile(wg: vec3<u32>, num_tiles: u32, index: u32, sum: Quads) {
    if wg.x == 0u && index == 0u {
        sums[sums_base(wg.y) + params.sums_offset + head_quads()] = vec4<f32>(f32(num_tiles));
    }
    for (var i = 0u; i < (CHUNKS + LANES - 1u) / LANES * CHUNK_QUADS; i++) {
        wg_sums[index] = quad_of(sum, i);
        workgroupBarrier();
        let chunk = index + i / CHUNK_QUADS * LANES;
        if index < LANES && chunk < CHUNKS {
            var total = wg_sums[index];
            for (var other = index + LANES; other < WG_SIZE; other += LANES) {
                total += wg_sums[other];
            }
            let quad = chunk * CHUNK_QUADS + i % CHUNK_QUADS;
            sums[sums_base(wg.y) + wg.x * head_quads() + quad] = total;
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(WG_SIZE)
fn add_tiles(@builtin(workgroup_id) grid: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let wg = grid.yxz;
    let r = scored_row(wg.y);
    let first = first_slot(r);
    let per_segment = WG_SIZE / SEGMENTS;
    let quad = wg.x * per_segment + index % per_segment;
    // No more tiles than have been summed.
    let num_tiles = num_summed(wg.y);
    var total = vec4<f32>(0.0);
    if quad < head_quads() {
        for (var tile = index / per_segment; tile < num_tiles && first + tile * SUM_TILE < r.len; tile += SEGMENTS) {
            total += sums[sums_base(wg.y) + tile * head_quads() + quad];
        }
    }
    wg_sums[index] = total;
    for (var d = WG_SIZE / 2u; d > per_segment / 2u; d >>= 1u) {
        workgroupBarrier();
        if index < d {
            wg_sums[index] += wg_sums[index + d];
        }
    }
    // An empty row, or one of an inactive sequence, keeps what it has.
    if index < per_segment && quad < head_quads() && r.len > 0u {
        let ix = sums_base(wg.y) + params.sums_offset + quad;
        var sum = wg_sums[index];
        if first > 0u {
            sum += sums[ix];
        }
        sums[ix] = sum;
    }
}

// Writes the order key of a token whose product or squared distance is `sum`; its inverse norm is where its key goes.
fn write_score(local_row: u32, r: Row, slot: u32, sum: f32, inverse_mean: f32) {
    let ix = score_ix(local_row, r, slot);
    let stored = order_keys[ix];
    let bad = stored == BAD;
    var score = sum;
    if !CENTROID {
        let inverse = bitcast<f32>(select(stored, 0u, bad));
        let scaled = materialised(vec4<f32>(sum * inverse));
        let cosine = materialised(scaled * inverse_mean).x;
        score = min(max(1.0 - cosine, 0.0), 2.0);
    }
    let bits = min(bitcast<u32>(score) & 0x7fffffffu, INFINITY_BITS);
    if CACHED {
        order_keys[ix] = select(bits, NAN_SCORE, bad);
    } else {
        write_key(local_row, slot, order_key(r, slot, bits, bad));
    }
}
