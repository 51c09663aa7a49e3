//! key_norm: one order key (u32, lower = kept first) a token, from the squared L2 norm of its key.
//! Source: A. Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
//!   https://arxiv.org/abs/2406.11430, section 2. Reference: src/reference/key_norm.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write u32 words of f32|f16|bf16|f8|q8_0|q4_0|int8, addressed by shared/address_*.wgsl; of layers in arrays
//!     group 1, binding 0
//!   2 state_meta read u32, by StateLayout
//!   3 positions read u32 [row, capacity] original position
//!   4 order_keys read_write u32 [row, order_stride], at the end a note of the row; with CACHED the squared norms, f32 bits
//!     [row, capacity]
//!   5 histogram read_write atomic u32 [row, histogram_stride] counts of first digits
//!   6 status read_write atomic u32 [layer] sticky bits
//!   8 page_table read_write u32 [sequence, table_stride] page ids; of a paged cache alone
//! Entry points: score · dispatch (num_rows, SCOUTS + ceil(max_len / TILE), 1), max_len that of a band where a row exceeds a
//!   binding; with HISTOGRAM, unless of bands, any number of parts in place of the tiles · needs none | subgroups; with
//!   CACHED of the tokens that have no norm yet
//! Overrides: WG_SIZE = 256; LANES = 16, a power of two in 2..=32; CHUNKS = 16, in 1..=128; TILE = 64, a multiple
//!   of WG_SIZE / LANES * 4; HISTOGRAM = false; CACHED = false; SCOUTS = 0, rows of the grid that shared/scout.wgsl
//!   speaks of; PAGE_SIZE = 16; KEY_WORDS = 33; NUM_LAYERS = 1, in the arrays
//! Workgroup bytes: 8192 with HISTOGRAM, + 20 * WG_SIZE in the workgroup variant
//! Algorithm: LANES invocations share a token (shared/score_tokens.wgsl); invocation j sums the squares of its 16-byte
//!   chunks j, j + LANES, … from left to right, then a butterfly at distances LANES / 2 … 1 adds the lanes. Four tokens
//!   are in flight an invocation: four named loads, since a private array would go to local memory. On a
//!   CPU one invocation takes all lanes of a token, whose cache lines it reads ahead (shared/reduce_serial.wgsl).
//!   The fused histogram counts the first radix digit, so that the radix selector starts one pass ahead.
//! Invariants: loads of tokens past the length are redirected to the last token and their results dropped, so the tail
//!   of a cache is never read. Lanes without a chunk add zero. Squares of f16 and bf16 are exact in f32, so contraction
//!   cannot change the bits. NaN is tested on bits.

struct Params {
    state: StateLayout,
    num_rows: u32,          // rows of this window
    first_row: u32,         // row of layer `layer` that is row 0 here
    layer: u32,
    order_stride: u32,      // words
    keys: TensorLayout,
    first_sequence: u32,
    direction: u32,         // 0 lowest, 1 highest, 2 random
    seed_low: u32,
    seed_high: u32,
    sinks: u32,             // tokens
    recent: u32,            // tokens
    histogram_stride: u32,  // words
    digit_shift: u32,       // of first digits
    digit_window: u32,      // first | len << 16
    share_low: u32,         // share of the length that `recent` is at most, times 2^40
    share_high: u32,        // NO_SHARE: no such bound
    first_slot: u32,        // slots of this dispatch, where a row exceeds a binding
    end_slot: u32,
    table_base: u32,        // words: of a paged cache, sequence 0's row of the table
    table_stride: u32,      // words
    zero: u32,              // 0, which compilers do not know
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> histogram: array<atomic<u32>>;
@group(0) @binding(6) var<storage, read_write> status: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;
override LANES: u32 = 16u;
override CHUNKS: u32 = 16u;
override SCOUTS: u32 = 0u;
override TILE: u32 = 64u;
override HISTOGRAM: bool = false;
override CACHED: bool = false;
override NUM_LAYERS: u32 = 1u; // in arrays of buffers

const NAN_NORM: u32 = 0x7fc00000u;

// One past the last slot that this dispatch scores.
fn end_of(r: Row) -> u32 {
    return min(r.len, params.end_slot);
}

// The first token that the dispatch scores.
fn first_slot(r: Row) -> u32 {
    if CACHED {
        let scored = state_meta[params.state.scored_base + r.layer * params.state.rows_per_layer + r.row];
        return max(params.first_slot, min(scored, r.len));
    }
    return params.first_slot;
}

fn note_row(local_row: u32, r: Row) {
    if !CACHED {
        write_note(local_row, r);
    }
}

fn write_score(wg: vec3<u32>, r: Row, slot: u32, sum: f32, nan: bool) {
    let norm = select(min(bitcast<u32>(sum) & 0x7fffffffu, INFINITY_BITS), NAN_NORM, nan);
    if CACHED {
        order_keys[r.positions_base + slot] = norm;
        return;
    }
    if norm >= INFINITY_BITS {
        atomicOr(&status[r.layer], STATUS_NON_FINITE_KEY);
    }
    write_key(wg.y, slot, order_key(r, slot, norm));
}
