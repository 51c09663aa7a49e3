// What a selector leaves of each row for the compaction.

struct RowInfo {
    len: u32,               // tokens before
    budget: u32,            // tokens kept
    num_moved: u32,         // fill: rows to move
    first_moved: u32,       // positional: first rank whose slot is not its rank
    threshold: u32,         // order key of the last kept
    num_ties: u32,          // keys equal to the threshold that are kept, lowest slots first
    compacted: u32,         // as it was before this compression
    num_seen: u32,
    active_row: u32,        // 0: the row is left as it is
    status: u32,            // sticky bits that this compression sets
    prefix_0: u32,          // radix, long rows: first digit, and the rank wanted among its keys
    rank_0: u32,
    prefix_1: u32,          // first two digits, and the rank wanted among their keys
    rank_1: u32,
    pad0: u32,
    pad1: u32,
}
