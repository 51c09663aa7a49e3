// Where the parts of the cache state lie.

struct StateLayout {
    num_seen_base: u32,   // word index of num_seen[layer, sequence]
    inactive_base: u32,   // word index of inactive[sequence], of a paged cache skipped[layer, sequence]; 0 = active
    lengths_base: u32,    // word index of lengths[layer, row]
    compacted_base: u32,  // word index of compacted[layer, row]
    positions_base: u32,  // word index of positions[0, 0, 0] in this binding, modulo 2^32
    capacity: u32,        // tokens a row can hold
    num_kv_heads: u32,
    rows_per_layer: u32,  // batch_size * num_kv_heads
    batch_size: u32,
    scored_base: u32,     // word index of scored[layer, row]
    segments_base: u32,   // word index of segments[sequence, MAX_SEGMENTS, 4]
    inactive_stride: u32, // words from one layer's to the next's; 0 where all layers share them
    writable_base: u32,   // word index of first_writable[sequence]
    writable_unit: u32,   // tokens that it counts by: a page, or 1
    pad0: u32,
    pad1: u32,
}
