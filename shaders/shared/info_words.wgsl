// RowInfo (shared/row_info.wgsl) where it lies among other words: what of it the state's update reads.

const INFO_WORDS: u32 = 16u;
const LEN_IX: u32 = 0u;
const BUDGET_IX: u32 = 1u;
const NUM_MOVED_IX: u32 = 2u;
const COMPACTED_IX: u32 = 6u;
const NUM_SEEN_IX: u32 = 7u;
const ACTIVE_ROW_IX: u32 = 8u;
const STATUS_IX: u32 = 9u;
