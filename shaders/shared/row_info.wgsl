// What a selector leaves of each row for the compaction. What is known at once is one vector: one access, not four.

struct RowInfo {
    tokens: vec4<u32>,    // before; kept; with positions stored and seen, both before this compression
    state: vec4<u32>,     // word index of the row's positions; 0: the row is left as it is; sticky bits to set; 0
    threshold: vec4<u32>, // order key of the last kept, keys equal to it that are kept, lowest slots first; of long rows
                          // before: bin of its first digit, its rank among the bin's keys, their number, tiles
    num_moved: u32,       // fill: rows to move
    first_moved: u32,     // positional: first rank whose slot is not its rank
    pooled_budget: u32,   // the row's part of its pool; bit 31: the pool had to keep more than was asked for
    pad0: u32,
}

fn len_of(info: RowInfo) -> u32 {
    return info.tokens.x;
}

fn budget_of(info: RowInfo) -> u32 {
    return info.tokens.y;
}

fn compacted_of(info: RowInfo) -> u32 {
    return info.tokens.z;
}

// Of a row that exceeds the recorded max_len it may be that of an earlier record, of a longer row.
fn num_moved_of(info: RowInfo) -> u32 {
    return min(info.num_moved, len_of(info));
}

fn num_seen_of(info: RowInfo) -> u32 {
    return info.tokens.w;
}

fn is_active(info: RowInfo) -> bool {
    return info.state.y != 0u;
}

fn status_of(info: RowInfo) -> u32 {
    return info.state.z;
}
