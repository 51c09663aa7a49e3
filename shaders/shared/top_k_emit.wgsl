// Emission: from a row's threshold to its slots, in slot order, by prefix sums over tiles.

fn ones(flags: vec4<bool>) -> u32 {
    let v = select(vec4<u32>(0u), vec4<u32>(1u), flags);
    return v.x + v.y + v.z + v.w;
}

// Keys below the threshold in the low half, equal ones in the high half.
fn count_quad(keys: vec4<u32>, threshold: u32) -> u32 {
    return ones(keys < vec4<u32>(threshold)) | (ones(keys == vec4<u32>(threshold)) << 16u);
}

// Writes what four slots contribute, given the keys below and equal to the threshold before them.
fn emit_quad(local_row: u32, s: SelectRow, threshold: u32, num_ties: u32, quad: u32, keys: vec4<u32>, below: u32, equal: u32) {
    let list_base = local_row * params.lists_stride;
    var below_before = below;
    var equal_before = equal;
    for (var i = 0u; i < 4u; i++) {
        let slot = quad * 4u + i;
        let key = keys[i];
        let is_below = key < threshold;
        let is_equal = key == threshold;
        let kept = is_below || (is_equal && equal_before < num_ties);
        let rank = below_before + min(equal_before, num_ties);
        if slot < s.row.len {
            if params.order == POSITIONAL {
                if kept {
                    lists[list_base + rank] = slot;
                    lists[list_base + params.staged_offset + rank] = position_of(s.row, slot);
                } else if slot == rank {
                    row_infos[params.first_info + local_row].first_moved = slot;
                }
            } else if slot < s.budget {
                if !kept {
                    lists[list_base + slot - rank] = slot;
                } else if slot >= s.row.compacted {
                    positions[s.row.positions_base + slot] = position_of(s.row, slot);
                }
            } else if kept {
                lists[list_base + s.row.len - s.budget + rank] = slot;
            }
            if slot == s.budget {
                row_infos[params.first_info + local_row].num_moved = s.budget - rank;
            }
        }
        below_before += u32(is_below);
        equal_before += u32(is_equal);
    }
}

// One invocation a row writes what the emission does not: all of RowInfo but the fields that a slot decides.
fn write_row_info(local_row: u32, s: SelectRow, threshold: u32, num_ties: u32, num_protected: u32) {
    row_infos[params.first_info + local_row].len = s.row.len;
    row_infos[params.first_info + local_row].budget = s.budget;
    row_infos[params.first_info + local_row].threshold = threshold;
    row_infos[params.first_info + local_row].num_ties = num_ties;
    row_infos[params.first_info + local_row].compacted = s.row.compacted;
    row_infos[params.first_info + local_row].num_seen = s.row.num_seen;
    row_infos[params.first_info + local_row].active_row = select(0u, 1u, s.row.active_row);
    if s.budget == s.row.len {
        row_infos[params.first_info + local_row].num_moved = 0u;
        row_infos[params.first_info + local_row].first_moved = s.budget;
    }
    var bits = 0u;
    if s.row.over_capacity {
        bits |= STATUS_LENGTH_OVER_CAPACITY;
    }
    if asked_budget(s.entry, s.row.len) < min(s.row.len, max(num_protected, 1u)) {
        bits |= STATUS_BUDGET_RAISED;
    }
    row_infos[params.first_info + local_row].status = bits;
}

// A workgroup emits a whole row. `first` holds the quad of each invocation in the first tile.
fn emit_row(index: u32, local_row: u32, s: SelectRow, first: vec4<u32>, threshold: u32, num_ties: u32, num_protected: u32) {
    if index == 0u {
        write_row_info(local_row, s, threshold, num_ties, num_protected);
    }
    let num_quads = select(0u, (s.row.len + 3u) / 4u, s.row.active_row);
    var next = first;
    var below = 0u;
    var equal = 0u;
    for (var base = 0u; base < num_quads; base += WG_SIZE) {
        let quad = base + index;
        let keys = next;
        next = load_quad(local_row, s.row.len, quad + WG_SIZE); // in flight while this tile is scanned
        let scanned = exclusive_scan(index, count_quad(keys, threshold));
        let before = vec2<u32>(below + (scanned.before & 0xffffu), equal + (scanned.before >> 16u));
        emit_quad(local_row, s, threshold, num_ties, quad, keys, before.x, before.y);
        below += scanned.total & 0xffffu;
        equal += scanned.total >> 16u;
        workgroupBarrier(); // between two scans
    }
}
