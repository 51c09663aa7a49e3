// Tokens of the longest row of a sequence in a layer.
fn longest_row(s: StateLayout, layer: u32, sequence: u32) -> u32 {
    let first = s.lengths_base + layer * s.rows_per_layer + sequence * s.num_kv_heads;
    var longest = 0u;
    for (var head = 0u; head < s.num_kv_heads; head++) {
        longest = max(longest, min(state_meta[first + head], s.capacity));
    }
    return longest;
}
