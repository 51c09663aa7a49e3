// Emission: from a row's threshold to its slots, in slot order, by prefix sums. An invocation holds eight keys in a row.

struct Keys {
    low: vec4<u32>,
    high: vec4<u32>,
}

// Keys of slots 8 * eight …, whatever the row's length, so that the loads need not wait for it.
fn load_raw(local_row: u32, eight: u32) -> Keys {
    let base = local_row * (params.order_stride / 4u);
    let quad = min(eight * 2u, params.order_stride / 4u - 2u);
    return Keys(order_keys[base + quad], order_keys[base + quad + 1u]);
}

// Pads where the row has ended.
fn mask_keys(k: Keys, len: u32, eight: u32) -> Keys {
    let slot = eight * 8u;
    let low = vec4<u32>(slot, slot + 1u, slot + 2u, slot + 3u);
    return Keys(
        select(vec4<u32>(PAD_KEY), k.low, low < vec4<u32>(len)),
        select(vec4<u32>(PAD_KEY), k.high, low + 4u < vec4<u32>(len)),
    );
}

fn ones(flags: vec4<bool>) -> u32 {
    let v = select(vec4<u32>(0u), vec4<u32>(1u), flags);
    return v.x + v.y + v.z + v.w;
}

fn count_zeros(k: Keys) -> u32 {
    return ones(k.low == vec4<u32>(0u)) + ones(k.high == vec4<u32>(0u));
}

// Keys below the threshold in the low half, equal ones in the high half.
fn count_keys(k: Keys, threshold: u32) -> u32 {
    let t = vec4<u32>(threshold);
    return (ones(k.low < t) + ones(k.high < t)) | ((ones(k.low == t) + ones(k.high == t)) << 16u);
}

struct Emission {
    local_row: u32,
    slot: u32,       // next slot
    below: u32,      // keys below the threshold before it
    equal: u32,      // keys equal to the threshold before it
}

// Writes what eight slots contribute.
fn emit_keys(e: Emission, s: SelectRow, k: Keys) {
    let next = emit_quad(e, s, k.low);
    let last = emit_quad(next, s, k.high);
}

// Components are named rather than indexed: a vector indexed by a variable goes to local memory.
fn emit_quad(e: Emission, s: SelectRow, keys: vec4<u32>) -> Emission {
    return emit_key(emit_key(emit_key(emit_key(e, s, keys.x), s, keys.y), s, keys.z), s, keys.w);
}

fn emit_key(e: Emission, s: SelectRow, key: u32) -> Emission {
    let is_below = key < s.threshold;
    let is_equal = key == s.threshold;
    let kept = is_below || (is_equal && e.equal < s.num_ties);
    let rank = e.below + min(e.equal, s.num_ties);
    let list_base = e.local_row * params.lists_stride;
    if e.slot < s.row.len {
        if e.slot == s.budget {
            row_infos[params.first_info + e.local_row].num_moved = s.budget - rank;
        }
        if params.order == POSITIONAL {
            if kept {
                lists[list_base + rank] = e.slot;
                lists[list_base + params.staged_offset + rank] = position_of(s.row, e.slot);
            } else if e.slot == rank {
                row_infos[params.first_info + e.local_row].first_moved = e.slot;
            }
        } else if e.slot >= s.budget {
            if kept {
                lists[list_base + s.row.len - s.budget + rank] = e.slot;
            }
        } else if !kept {
            lists[list_base + e.slot - rank] = e.slot;
        } else if e.slot >= s.row.compacted {
            positions[s.row.positions_base + e.slot] = position_of(s.row, e.slot);
        }
    }
    return Emission(e.local_row, e.slot + 1u, e.below + u32(is_below), e.equal + u32(is_equal));
}

// One invocation a row writes what the emission does not: all of RowInfo but the fields that a slot decides.
fn write_row_info(local_row: u32, s: SelectRow) {
    let ix = params.first_info + local_row;
    row_infos[ix].len = s.row.len;
    row_infos[ix].budget = s.budget;
    row_infos[ix].threshold = s.threshold;
    row_infos[ix].num_ties = s.num_ties;
    row_infos[ix].compacted = s.row.compacted;
    row_infos[ix].num_seen = s.row.num_seen;
    row_infos[ix].active_row = select(0u, 1u, s.row.active_row);
    if s.budget == s.row.len {
        row_infos[ix].num_moved = 0u;
        row_infos[ix].first_moved = s.budget;
    }
    var bits = 0u;
    if s.row.over_capacity {
        bits |= STATUS_LENGTH_OVER_CAPACITY;
    }
    if asked_budget(s.entry, s.row.len) < min(s.row.len, max(s.num_protected, 1u)) {
        bits |= STATUS_BUDGET_RAISED;
    }
    row_infos[ix].status = bits;
}

// Emits the eight keys of each invocation, the workgroup's first slot being `first_slot`.
fn emit_tile(index: u32, local_row: u32, s: SelectRow, k: Keys, first_slot: u32, below: u32, equal: u32) -> Scanned {
    let scanned = exclusive_scan(index, count_keys(k, s.threshold));
    if s.row.active_row {
        let before = vec2<u32>(below + (scanned.before & 0xffffu), equal + (scanned.before >> 16u));
        emit_keys(Emission(local_row, first_slot + index * 8u, before.x, before.y), s, k);
    }
    return scanned;
}
