//! renumber: positions become those that follow the slots, once the keys have been turned to them.
//! Source: the state of a compacted cache, DESIGN of this crate (README, "Cache state"). Reference:
//!   src/reference/rotate.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 state_meta read_write u32, by StateLayout
//! Entry points: renumber · dispatch (ceil(num_layers * batch_size / WG_SIZE), 1, 1) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 0
//! Algorithm: an invocation takes a sequence of a layer: tokens seen become the length of its longest row, and no slot has
//!   a stored position any more, so that a slot's is counted back from there.
//! Invariants: each word is written by one invocation. Inactive sequences do not change.

struct Params {
    state: StateLayout,
    first_layer: u32,
    num_layers: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> state_meta: array<u32>;

override WG_SIZE: u32 = 256u;

@compute @workgroup_size(WG_SIZE)
fn renumber(@builtin(global_invocation_id) id: vec3<u32>) {
    let s = params.state;
    if id.x >= params.num_layers * s.batch_size {
        return;
    }
    let layer = params.first_layer + id.x / s.batch_size;
    let sequence = id.x % s.batch_size;
    if state_meta[s.inactive_base + sequence] != 0u {
        return;
    }
    state_meta[s.num_seen_base + layer * s.batch_size + sequence] = longest_row(s, layer, sequence);
    let first = s.compacted_base + layer * s.rows_per_layer + sequence * s.num_kv_heads;
    for (var head = 0u; head < s.num_kv_heads; head++) {
        state_meta[first + head] = 0u;
    }
}
