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
    num_protected: u32,
    bin: u32,               // radix, long rows: bin of the threshold's first digit
    bin_rank: u32,          // rank of the threshold among the keys of its bin
    bin_count: u32,         // keys of the bin
    num_within: u32,        // keys up to the rule's limit
    pooled_budget: u32,     // the row's part of its pool; bit 31: the pool had to keep more than was asked for
}
