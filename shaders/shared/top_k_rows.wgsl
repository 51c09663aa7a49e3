// What both selectors share: bindings, budgets, and the loads of order keys.
//   0 params uniform Params
//   1 order_keys read vec4<u32> [row, order_stride / 4]
//   2 state_meta read u32, by StateLayout
//   3 positions read u32 [row, capacity] original position
//   4 lists read_write u32 [row, lists_stride]: slots, then staged positions (Positional) or bits of kept slots (Fill), and
//     keys set aside and the ends of their digits (long rows)
//   5 row_infos read_write RowInfo [row]
//   7 rules read RowRule [compressed layer, head]

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order_keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> lists: array<u32>;
@group(0) @binding(5) var<storage, read_write> row_infos: array<RowInfo>;
@group(0) @binding(7) var<storage, read> rules: array<RowRule>;

fn select_row_of(local_row: u32) -> SelectRow {
    let layer_row = divided(params.first_row + local_row, params.state.rows_per_layer);
    let compressed = layer_row.quotient;
    let row = layer_row.rest;
    let heads = params.state.num_kv_heads;
    var s: SelectRow;
    s.rule = rules[compressed * heads + divided(row, heads).rest];
    s.pooled_budget = row_infos[params.first_info + local_row].pooled_budget;
    // A window has no gap in its layers, so the state's addresses do not wait for the table.
    s.row = load_row(params.state, params.first_layer + compressed, row);
    return s;
}

fn key_at(local_row: u32, slot: u32) -> u32 {
    return min(order_keys[local_row * (params.order_stride / 4u) + slot / 4u][slot % 4u], PAD_KEY - 1u);
}

// Keys of slots 8 * eight …, whatever the row's length, so that the loads need not wait for it.
fn load_raw(local_row: u32, eight: u32) -> Keys {
    let base = local_row * (params.order_stride / 4u);
    let quad = min(eight * 2u, params.order_stride / 4u - 2u);
    return Keys(order_keys[base + quad], order_keys[base + quad + 1u]);
}

// Of a row what an earlier dispatch has left, without the fields that this one writes.
fn load_info(local_row: u32) -> RowInfo {
    let ix = params.first_info + local_row;
    var info: RowInfo;
    info.tokens = row_infos[ix].tokens;
    info.state = row_infos[ix].state;
    info.threshold = row_infos[ix].threshold;
    return info;
}

// A row as an earlier dispatch has left it.
fn row_of_info(info: RowInfo) -> SelectRow {
    var s: SelectRow;
    s.row.len = len_of(info);
    s.row.compacted = compacted_of(info);
    s.row.num_seen = num_seen_of(info);
    s.row.positions_base = info.state.x;
    s.row.active_row = is_active(info);
    s.budget = budget_of(info);
    s.threshold = info.threshold.x;
    s.num_ties = info.threshold.y;
    return s;
}

// One invocation a row writes what the emission does not: all but the fields that a slot decides.
fn write_row_info(local_row: u32, s: SelectRow, threshold: vec4<u32>) {
    let ix = params.first_info + local_row;
    row_infos[ix].tokens = vec4<u32>(s.row.len, s.budget, s.row.compacted, s.row.num_seen);
    row_infos[ix].state = vec4<u32>(s.row.positions_base, select(0u, 1u, s.row.active_row), status_bits(s), 0u);
    row_infos[ix].threshold = threshold;
    if s.budget == s.row.len {
        row_infos[ix].num_moved = 0u;
        row_infos[ix].first_moved = s.budget;
    }
}

fn note_first_moved(local_row: u32, rank: u32) {
    row_infos[params.first_info + local_row].first_moved = rank;
}

fn note_num_moved(local_row: u32, count: u32) {
    row_infos[params.first_info + local_row].num_moved = count;
}

// Fill: a word for each eight slots of the front, bit i for slot i, so that the state's update knows which were kept.
fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
    if first_slot < s.budget {
        lists[local_row * params.lists_stride + params.staged_offset + first_slot / 8u] = kept;
    }
}
