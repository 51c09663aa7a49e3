//! reserve: tokens that a segment of positions keeps in any case become protected: its lowest, or all of them.
//! Source: pinned ranges and quotas are our own; the threshold is found as in radix.wgsl. Reference:
//!   src/reference/key_norm.rs (reserve), exact.
//! Bindings:
//!   0 params uniform Params (shared/top_k_params.wgsl)
//!   1 order_keys read_write u32 [row, order_stride]
//!   2 state_meta read u32, by StateLayout
//!   3 positions read u32 [row, capacity] original position
//! Entry points: reserve · dispatch (MAX_SEGMENTS, num_rows, 1) · none
//! Overrides: WG_SIZE = 256, a multiple of 64
//! Workgroup bytes: 1088 + 4 * WG_SIZE
//! Algorithm: a workgroup finds the threshold of its segment's tokens, eight bits at a time over the row, then walks the
//!   row in slot order and sets to 0 the keys below it and the first ones equal to it.
//! Invariants: segments of a sequence share no position (checked on the host), so workgroups touch different keys. The
//!   branch around barriers depends on a count that the whole workgroup sees.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> order_keys: array<u32>;
@group(0) @binding(2) var<storage, read> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;

override WG_SIZE: u32 = 256u;
const MAX_SEGMENTS: u32 = 8u;
const NUM_DIGITS: u32 = 256u;

struct Segment {
    start: u32,       // first position
    end: u32,         // first position after it
    min_tokens: u32,  // tokens kept in any case
    len: u32,         // tokens of the row; 0 where there is nothing to do
}

var<workgroup> wg_segment: Segment;
var<workgroup> wg_num: atomic<u32>;
var<workgroup> wg_members: u32;
var<workgroup> digits: array<atomic<u32>, NUM_DIGITS>;
var<workgroup> wg_found: Found;

fn load_segment(r: Row, row: u32, ix: u32) -> Segment {
    let base = params.state.segments_base + (row / params.state.num_kv_heads * MAX_SEGMENTS + ix) * 4u;
    let start = state_meta[base];
    let end = state_meta[base + 1u];
    let min_tokens = state_meta[base + 2u];
    let any = r.active_row && start < end && min_tokens > 0u;
    return Segment(start, end, min_tokens, select(0u, r.len, any));
}

fn is_member(r: Row, s: Segment, slot: u32) -> bool {
    if slot >= s.len {
        return false;
    }
    let position = position_of(r, slot);
    return position >= s.start && position < s.end;
}

@compute @workgroup_size(WG_SIZE)
fn reserve(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let global_row = params.first_row + wg.y;
    let layer_row = divided(global_row, params.state.rows_per_layer);
    let layer = params.first_layer + layer_row.quotient;
    let row = layer_row.rest;
    let r = load_row(params.state, layer, row);
    let base = wg.y * params.order_stride;
    if index == 0u {
        wg_segment = load_segment(r, row, wg.x);
        atomicStore(&wg_num, 0u);
    }
    let s = workgroupUniformLoad(&wg_segment);
    var num = 0u;
    for (var slot = index; slot < s.len; slot += WG_SIZE) {
        num += u32(is_member(r, s, slot));
    }
    if num > 0u {
        atomicAdd(&wg_num, num);
    }
    workgroupBarrier();
    if index == 0u {
        wg_members = atomicLoad(&wg_num);
    }
    // An atomic's value does not count as the same for all, as what barriers lie behind must be.
    let num_members = workgroupUniformLoad(&wg_members);
    if num_members > s.min_tokens {
        keep_lowest(r, s, base, index, threshold_of(r, s, base, index));
    } else {
        for (var slot = index; slot < s.len; slot += WG_SIZE) {
            if is_member(r, s, slot) {
                order_keys[base + slot] = 0u;
            }
        }
    }
}

// The threshold and its rank among its equals, or what is found of them so far.
struct Found {
    prefix: u32,
    rank: u32,
}

// The order key that is last to be kept of the segment's.
fn threshold_of(r: Row, s: Segment, base: u32, index: u32) -> Found {
    var found = Found(0u, s.min_tokens - 1u);
    for (var left = 4u; left > 0u; left--) {
        let shift = (left - 1u) * 8u;
        let known = select(0u, 0xffffffffu << (shift + 8u), shift < 24u);
        atomicStore(&digits[index], 0u);
        workgroupBarrier();
        for (var slot = index; slot < s.len; slot += WG_SIZE) {
            if is_member(r, s, slot) {
                let key = order_keys[base + slot];
                if ((key ^ found.prefix) & known) == 0u {
                    atomicAdd(&digits[(key >> shift) & (NUM_DIGITS - 1u)], 1u);
                }
            }
        }
        workgroupBarrier();
        let count = atomicLoad(&digits[index]);
        let before = exclusive_scan(index, count).before;
        if found.rank >= before && found.rank - before < count {
            wg_found = Found(found.prefix | (index << shift), found.rank - before);
        }
        found = workgroupUniformLoad(&wg_found);
    }
    return found;
}

// Protects the segment's keys below the threshold, and of its equals the lowest slots.
fn keep_lowest(r: Row, s: Segment, base: u32, index: u32, threshold: Found) {
    var ties_before = 0u;
    for (var first = 0u; first < s.len; first += WG_SIZE) {
        let slot = first + index;
        let member = is_member(r, s, slot);
        var key = 0xffffffffu;
        if member {
            key = order_keys[base + slot];
        }
        let tie = member && key == threshold.prefix;
        let scanned = exclusive_scan(index, u32(tie));
        if member && (key < threshold.prefix || (tie && ties_before + scanned.before <= threshold.rank)) {
            order_keys[base + slot] = 0u;
        }
        ties_before += scanned.total;
    }
}
