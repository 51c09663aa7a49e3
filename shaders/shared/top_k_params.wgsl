// Parameters of the selectors and of the state update.

struct Params {
    state: StateLayout,
    num_rows: u32,          // rows of this window
    first_row: u32,         // compressed layer * rows_per_layer + row of row 0 here
    order_stride: u32,      // words between rows of order_keys, a multiple of 64
    lists_stride: u32,      // words between rows of lists
    staged_offset: u32,     // words from a row's slots to its staged positions (Positional), or bits of kept slots (Fill)
    aside_offset: u32,      // words from a row's slots to the keys set aside
    histogram_stride: u32,  // words between rows of histogram
    order: u32,             // 0 fill, 1 positional
    sorted_stride: u32,     // words between rows of the bitonic scratch, a power of two
    merge_size: u32,        // bitonic: size of the sequences being merged
    merge_stride: u32,      // bitonic: compare distance
    ends_offset: u32,       // words from a row's slots to the ends of sorted keys set aside
    first_info: u32,        // index of row 0 in row_infos
    first_layer: u32,       // the state's layer of compressed layer 0, were there no gap; modulo 2^32
    tile_counts_base: u32,  // words from a row's histogram to its tile counts
    digit_shift: u32,       // of first digits
    digit_window: u32,      // first | len << 16
    keys_held: u32,         // 8: keys of a tile that an invocation holds
    pool_pass: u32,         // 0..4: digits of the medians; 4..8: digits of the pool's threshold
    pool_min_tokens: u32,   // tokens that every head keeps of its own
}
