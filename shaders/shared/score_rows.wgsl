// What the scores of more than one pass share: bindings, rows, protection, and the counts of first digits.
//   0 params uniform Params
//   2 state_meta read u32, by StateLayout
//   3 positions read u32 [row, capacity] original position
//   4 order_keys read_write u32 [row, order_stride], behind them a note of the row; with CACHED the scores in the state, f32
//     bits [row, capacity]
//   5 histogram read_write atomic u32 [row, histogram_stride] counts of first digits
//   6 status read_write atomic u32 [layer] sticky bits

struct Params {
    state: StateLayout,
    num_rows: u32,          // rows of this window
    first_row: u32,         // row of layer `layer` that is row 0 here
    layer: u32,
    order_stride: u32,      // words
    keys: TensorLayout,     // of what is scored
    first_sequence: u32,
    complement: u32,        // 0: low scores are kept; else the bits from which a score's are subtracted
    sums_stride: u32,       // vectors between rows of sums
    sums_offset: u32,       // vectors from a row's first tile to its whole sum
    sinks: u32,             // tokens
    recent: u32,            // tokens
    share_low: u32,         // share of the length that `recent` is at most, times 2^40
    share_high: u32,        // NO_SHARE: no such bound
    histogram_stride: u32,  // words
    digit_shift: u32,       // of first digits
    digit_window: u32,      // first | len << 16
    table_base: u32,        // words: of a paged cache, sequence 0's row of the table
    table_stride: u32,      // words
    zero: u32,              // 0, which compilers do not know
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> histogram: array<atomic<u32>>;
@group(0) @binding(6) var<storage, read_write> status: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;
override TILE: u32 = 256u;
override HISTOGRAM: bool = false;

const INFINITY_BITS: u32 = 0x7f800000u;
const NAN_ORDER_KEY: u32 = 0xfffffffeu;

// One past the last.
fn end_of(r: Row) -> u32 {
    return r.len;
}

// Order key of a score of this rank; `bad` scores come last, protected tokens first.
fn order_key(r: Row, slot: u32, bits: u32, bad: bool) -> u32 {
    if bad {
        atomicOr(&status[r.layer], STATUS_NON_FINITE_KEY);
    }
    var key = bits + 1u;
    if params.complement != 0u {
        key = params.complement - bits + 1u;
    }
    if bad {
        key = NAN_ORDER_KEY;
    }
    if max(params.sinks, params.recent) > 0u {
        let position = position_of(r, slot);
        let recent = recent_of(params.recent, params.share_low, params.share_high, r.len);
        if position < params.sinks || r.num_seen - position <= recent {
            key = 0u;
        }
    }
    if slot < r.first_writable {
        key = 0u;
    }
    return key;
}
