// One row of the cache state: its length, its compacted prefix and the positions of its slots.

struct Row {
    len: u32,             // tokens, clamped to the capacity
    compacted: u32,       // slots below this one have their position stored
    num_seen: u32,        // tokens seen so far, at least len
    positions_base: u32,  // word index of the row's positions
    first_writable: u32,  // slots below this one stay as they are
    active_row: bool,
    over_capacity: bool,  // of an active sequence
    layer: u32,
    row: u32,             // of the layer
}

const STATUS_LENGTH_OVER_CAPACITY: u32 = 1u;
const STATUS_BUDGET_RAISED: u32 = 2u;
const STATUS_NON_FINITE_KEY: u32 = 8u;
const STATUS_NORM_MISSING: u32 = 16u;

fn load_row(s: StateLayout, layer: u32, row: u32) -> Row {
    let sequence = divided(row, s.num_kv_heads).quotient;
    let state_row = layer * s.rows_per_layer + row;
    var r: Row;
    let raw_len = state_meta[s.lengths_base + state_row];
    r.len = min(raw_len, s.capacity);
    r.compacted = min(state_meta[s.compacted_base + state_row], r.len);
    r.num_seen = max(state_meta[s.num_seen_base + layer * s.batch_size + sequence], r.len);
    r.positions_base = s.positions_base + state_row * s.capacity;
    let first_writable = state_meta[s.writable_base + sequence];
    r.first_writable = min(first_writable, s.capacity) * s.writable_unit;
    r.active_row = state_meta[s.inactive_base + layer * s.inactive_stride + sequence] == 0u;
    r.over_capacity = r.active_row && raw_len > s.capacity;
    r.layer = layer;
    r.row = row;
    return r;
}

// Original position of a slot: stored below the compacted prefix, counted back from num_seen above it.
fn position_of(r: Row, slot: u32) -> u32 {
    if slot < r.compacted {
        return positions[r.positions_base + slot];
    }
    return r.num_seen - (r.len - slot);
}
