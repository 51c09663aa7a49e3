// What both selectors share: bindings, budgets, and the loads of order keys.
//   0 params uniform Params
//   1 order_keys read vec4<u32> [row, order_stride / 4]
//   2 state_meta read_write u32, by StateLayout
//   3 positions read_write u32 [row, capacity] original position
//   4 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional) and keys set aside (long rows)
//   5 row_infos read_write RowInfo [row]
//   6 histogram read_write atomic u32 [row, histogram_stride]
//   7 rules read RowRule [compressed layer, head]

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order_keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read_write> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> lists: array<u32>;
@group(0) @binding(5) var<storage, read_write> row_infos: array<RowInfo>;
@group(0) @binding(6) var<storage, read_write> histogram: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read> rules: array<RowRule>;

override WG_SIZE: u32 = 256u;
const PAD_KEY: u32 = 0xffffffffu;
const POSITIONAL: u32 = 1u;

// Fields as in RowInfo.
struct SelectRow {
    row: Row,
    rule: RowRule,
    budget: u32,
    num_protected: u32,
    num_within: u32,
    pooled_budget: u32,
    bin: u32,
    bin_rank: u32,
    bin_count: u32,
    threshold: u32,
    num_ties: u32,
}

fn select_row_of(local_row: u32) -> SelectRow {
    let global_row = params.first_row + local_row;
    let compressed = global_row / params.state.rows_per_layer;
    let row = global_row % params.state.rows_per_layer;
    let heads = params.state.num_kv_heads;
    var s: SelectRow;
    s.rule = rules[compressed * heads + row % heads];
    s.pooled_budget = row_infos[params.first_info + local_row].pooled_budget;
    // A window has no gap in its layers, so the state's addresses do not wait for the table.
    s.row = load_row(params.state, params.first_layer + compressed, row);
    return s;
}

// What a row keeps of its keys: the pool's word, or that of its rule. An inactive row keeps everything.
fn row_budget(s: SelectRow) -> u32 {
    let pooled = s.pooled_budget & ~POOL_RAISED;
    let asked = select(asked_budget(s.rule, s.row.len, s.num_within), pooled, s.rule.pooled == 1u);
    let budget = min(s.row.len, max(asked, max(s.num_protected, 1u)));
    return select(s.row.len, budget, s.row.active_row);
}

fn key_at(local_row: u32, slot: u32) -> u32 {
    return min(order_keys[local_row * (params.order_stride / 4u) + slot / 4u][slot % 4u], PAD_KEY - 1u);
}
