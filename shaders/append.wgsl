//! append: counts tokens that the caller has appended to every row of a sequence.
//! Source: the state of a compacted cache, DESIGN of this crate (README, "Cache state"). Reference:
//!   src/reference/compact.rs (CacheRow::append), exact.
//! Bindings:
//!   0 params uniform Params
//!   1 state_meta read_write u32, by StateLayout
//!   2 counts read u32 [slot, batch_size rounded up to 64] tokens
//! Entry points: append · dispatch (ceil(num_layers * rows_per_layer / WG_SIZE), 1, 1) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 0
//! Algorithm: an invocation a row adds its sequence's count to the length; that of head 0 to num_seen as well. What is
//!   stored of slots that the row has lost since is forgotten first, so that a caller may shorten rows.
//! Invariants: each word is written by one invocation. Inactive sequences do not change.

struct Params {
    state: StateLayout,
    num_layers: u32,
    counts_base: u32, // words: first count of the slot
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;

override WG_SIZE: u32 = 256u;

@compute @workgroup_size(WG_SIZE)
fn append(@builtin(global_invocation_id) id: vec3<u32>) {
    let s = params.state;
    if id.x >= params.num_layers * s.rows_per_layer {
        return;
    }
    let layer = id.x / s.rows_per_layer;
    let row = id.x % s.rows_per_layer;
    let sequence = row / s.num_kv_heads;
    if state_meta[s.inactive_base + sequence] != 0u {
        return;
    }
    let len = state_meta[s.lengths_base + id.x];
    state_meta[s.lengths_base + id.x] = len + counts[params.counts_base + sequence];
    state_meta[s.compacted_base + id.x] = min(state_meta[s.compacted_base + id.x], len);
    state_meta[s.scored_base + id.x] = min(state_meta[s.scored_base + id.x], len);
    if row % s.num_kv_heads == 0u {
        state_meta[s.num_seen_base + layer * s.batch_size + sequence] += counts[params.counts_base + sequence];
    }
}
