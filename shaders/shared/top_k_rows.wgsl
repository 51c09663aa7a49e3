// What both selectors share: bindings, budgets, and the loads of order keys.
//   0 params uniform Params
//   1 order_keys read vec4<u32> [row, order_stride / 4]
//   2 state_meta read_write u32, by StateLayout
//   3 positions read_write u32 [row, capacity] original position
//   4 lists read_write u32 [row, lists_stride]: slots, then (Positional) staged positions
//   5 row_infos read_write RowInfo [row]
//   6 histogram read_write atomic u32 [row, histogram_stride]
//   7 layers read LayerEntry [compressed layer]

struct Params {
    state: StateLayout,
    num_rows: u32,          // rows of this window
    first_row: u32,         // compressed layer * rows_per_layer + row of row 0 here
    order_stride: u32,      // words between rows of order_keys, a multiple of 64
    lists_stride: u32,      // words between rows of lists
    staged_offset: u32,     // words from a row's slots to its staged positions
    histogram_stride: u32,  // words between rows of histogram
    order: u32,             // 0 fill, 1 positional
    sorted_stride: u32,     // words between rows of the bitonic scratch, a power of two
    merge_size: u32,        // bitonic: size of the sequences being merged
    merge_stride: u32,      // bitonic: compare distance
    from_sorted: u32,       // 1: the threshold is in row_infos already
    first_info: u32,        // index of row 0 in row_infos
    tile_counts_base: u32,  // words from a row's histogram to its tile counts
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

struct LayerEntry {
    layer: u32,             // index of the layer in the cache state
    budget_mode: u32,       // 0 ratio rounded up, 1 ratio rounded down, 2 tokens
    ratio_low: u32,         // keep ratio * 2^40, low word
    ratio_high: u32,        // keep ratio * 2^40, high word
    tokens: u32,            // tokens kept a row
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order_keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read_write> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> lists: array<u32>;
@group(0) @binding(5) var<storage, read_write> row_infos: array<RowInfo>;
@group(0) @binding(6) var<storage, read_write> histogram: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read> layers: array<LayerEntry>;

override WG_SIZE: u32 = 256u;
const PAD_KEY: u32 = 0xffffffffu;
const POSITIONAL: u32 = 1u;

struct SelectRow {
    row: Row,
    entry: LayerEntry,
    budget: u32,
}

struct Scanned {
    before: u32, // sum of the values of lower invocations
    total: u32,  // sum of all
}

var<workgroup> scan_sums: array<u32, WG_SIZE>;

fn select_row_of(local_row: u32) -> SelectRow {
    let global_row = params.first_row + local_row;
    let entry = layers[global_row / params.state.rows_per_layer];
    var s: SelectRow;
    s.entry = entry;
    s.row = load_row(params.state, entry.layer, global_row % params.state.rows_per_layer);
    return s;
}

// (high, low) words of a * b.
fn multiply_wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + (a0 * b0 >> 16u);
    let middle2 = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a1 * b1 + (middle >> 16u) + (middle2 >> 16u), a * b);
}

// The same integers as BudgetRule::tokens on the host: ratio as 40-bit fixed point times len, rounded up or down.
fn asked_budget(entry: LayerEntry, len: u32) -> u32 {
    if entry.budget_mode == 2u {
        return entry.tokens;
    }
    let low = multiply_wide(len, entry.ratio_low);
    let high = low.x + len * entry.ratio_high; // below 2^29: len <= 2^20 and ratio <= 2^40
    let floor_value = high >> 8u;
    let has_fraction = (high & 0xffu) != 0u || low.y != 0u;
    return floor_value + select(0u, 1u, entry.budget_mode == 0u && has_fraction);
}

fn row_budget(entry: LayerEntry, len: u32, num_protected: u32) -> u32 {
    return min(len, max(asked_budget(entry, len), max(num_protected, 1u)));
}

fn key_at(local_row: u32, slot: u32) -> u32 {
    return order_keys[local_row * (params.order_stride / 4u) + slot / 4u][slot % 4u];
}

// Four keys of slots 4 * quad …, pads where the row has ended.
fn load_quad(local_row: u32, len: u32, quad: u32) -> vec4<u32> {
    let slot = quad * 4u;
    if slot >= len {
        return vec4<u32>(PAD_KEY);
    }
    let q = order_keys[local_row * (params.order_stride / 4u) + quad];
    let slots = vec4<u32>(slot, slot + 1u, slot + 2u, slot + 3u);
    return select(vec4<u32>(PAD_KEY), q, slots < vec4<u32>(len));
}
