// What both selectors share: bindings, budgets, and the loads of order keys.
//   0 params uniform Params
//   1 order_keys read vec4<u32> [row, order_stride / 4]
//   2 state_meta read_write u32, by StateLayout
//   3 positions read_write u32 [row, capacity] original position
//   4 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional) and keys set aside (long rows)
//   5 row_infos read_write RowInfo [row]
//   6 histogram read_write atomic u32 [row, histogram_stride]
//   7 layers read LayerEntry [compressed layer]

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
    num_protected: u32,
    bin: u32,       // as in RowInfo
    bin_rank: u32,
    bin_count: u32,
    threshold: u32,
    num_ties: u32,
}

fn select_row_of(local_row: u32) -> SelectRow {
    let global_row = params.first_row + local_row;
    let compressed = global_row / params.state.rows_per_layer;
    var s: SelectRow;
    s.entry = layers[compressed];
    // A window has no gap in its layers, so the state's addresses do not wait for the table.
    s.row = load_row(params.state, params.first_layer + compressed, global_row % params.state.rows_per_layer);
    return s;
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

// An inactive row keeps everything.
fn row_budget(entry: LayerEntry, row: Row, num_protected: u32) -> u32 {
    let budget = min(row.len, max(asked_budget(entry, row.len), max(num_protected, 1u)));
    return select(row.len, budget, row.active_row);
}

fn key_at(local_row: u32, slot: u32) -> u32 {
    return order_keys[local_row * (params.order_stride / 4u) + slot / 4u][slot % 4u];
}
