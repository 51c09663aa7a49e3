//! append: counts tokens that the caller has appended to every row of a sequence, or takes some of them back.
//! Source: the state of a compacted cache, DESIGN of this crate (README, "Cache state"). Reference:
//!   src/reference/compact.rs (CacheRow::append, CacheRow::truncate), exact.
//! Bindings:
//!   0 params uniform Params
//!   1 state_meta read_write u32, by StateLayout
//!   2 counts read u32 [slot, batch_size rounded up to 64] tokens
//! Entry points: append, truncate · dispatch (ceil(num_layers * rows_per_layer / WG_SIZE), 1, 1) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 0
//! Algorithm: an invocation a row adds its sequence's count to the length; that of head 0 to num_seen as well. What is
//!   stored of slots that the row has lost since is forgotten first, so that a caller may shorten rows. truncate takes
//!   off as many of the last tokens, but none that a compression has left: those since lie at the end, in order.
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

struct StateRow {
    layer: u32,
    sequence: u32,
    is_first: bool, // of its sequence's heads
    takes_part: bool,
}

fn state_row(ix: u32) -> StateRow {
    let s = params.state;
    let row = ix % s.rows_per_layer;
    let sequence = row / s.num_kv_heads;
    let takes_part = ix < params.num_layers * s.rows_per_layer && state_meta[s.inactive_base + sequence] == 0u;
    return StateRow(ix / s.rows_per_layer, sequence, row % s.num_kv_heads == 0u, takes_part);
}

// Forgets what is stored of slots from `len` on.
fn forget(ix: u32, len: u32) {
    let s = params.state;
    state_meta[s.compacted_base + ix] = min(state_meta[s.compacted_base + ix], len);
    state_meta[s.scored_base + ix] = min(state_meta[s.scored_base + ix], len);
}

@compute @workgroup_size(WG_SIZE)
fn append(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = state_row(id.x);
    if !r.takes_part {
        return;
    }
    let s = params.state;
    let count = counts[params.counts_base + r.sequence];
    let len = state_meta[s.lengths_base + id.x];
    forget(id.x, len);
    state_meta[s.lengths_base + id.x] = len + count;
    if r.is_first {
        state_meta[s.num_seen_base + r.layer * s.batch_size + r.sequence] += count;
    }
}

@compute @workgroup_size(WG_SIZE)
fn truncate(@builtin(global_invocation_id) id: vec3<u32>) {
    let r = state_row(id.x);
    if !r.takes_part {
        return;
    }
    let s = params.state;
    let len = state_meta[s.lengths_base + id.x];
    let compacted = min(state_meta[s.compacted_base + id.x], len);
    let count = min(counts[params.counts_base + r.sequence], len - compacted);
    forget(id.x, len - count);
    state_meta[s.lengths_base + id.x] = len - count;
    if r.is_first {
        let seen = s.num_seen_base + r.layer * s.batch_size + r.sequence;
        state_meta[seen] = max(state_meta[seen], len) - count;
    }
}
