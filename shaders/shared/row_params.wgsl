// Parameters of the kernels that take whole rows.

struct Params {
    state: StateLayout,
    keys: TensorLayout,
    values: TensorLayout,
    num_rows: u32,        // rows of this window
    first_row: u32,       // row of layer `layer` that is row 0 here
    layer: u32,
    first_sequence: u32,
    first_rule: u32,      // index of the layer's first rule
    order_stride: u32,    // words between rows of order_keys
    keys_held: u32,       // 8: keys of a tile that an invocation holds
    digit_shift: u32,     // of first digits
    digit_window: u32,    // first | len << 16
    direction: u32,       // 0 lowest, 1 highest, 2 random
    seed_low: u32,
    seed_high: u32,
    sinks: u32,           // tokens
    recent: u32,          // tokens
    share_low: u32,       // share of the length that `recent` is at most, times 2^40
    share_high: u32,      // NO_SHARE: no such bound
    pad0: u32,
    pad1: u32,
}
