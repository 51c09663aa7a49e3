//! bitonic: the threshold of each row by a bitonic sort of its order keys, then the kept slots.
//! Source: K. E. Batcher, "Sorting networks and their applications", AFIPS 1968; that a top-k needs only the k-th key
//!   and its ties is our own use of it. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl, and
//!   8 sorted read_write u32 [row, sorted_stride]: keys of rows that exceed SORT_LEN
//! Entry points: bitonic_row · dispatch (1, num_rows, 1) · none: rows up to SORT_LEN, in workgroup memory
//!   bitonic_tiles, bitonic_merge · dispatch (sorted_len / SORT_LEN, num_rows, 1) · none
//!   bitonic_step · dispatch (ceil(sorted_len / 2 / WG_SIZE), num_rows, 1) · none
//!   bitonic_pick · dispatch (ceil(max_len / TILE), num_rows, 1) · none: one workgroup works, longer rows stay as they are
//! Overrides: WG_SIZE = 256, a multiple of 64; SORT_LEN = 2048, a power of two; IN_ORDER = false
//! Workgroup bytes: 4 * SORT_LEN + 4 * WG_SIZE + 184
//! Algorithm: only keys are sorted: the k-th key and the number of its equals within the first k say all, since ties go
//!   to the lowest slot. Longer rows: tiles of SORT_LEN are sorted in alternating direction; each merge compares at
//!   distances >= SORT_LEN over the whole row, a dispatch each, and below that in workgroup memory again.
//! Invariants: pads of 0xffffffff come after every key. Pairs of one step are disjoint, so a dispatch has no races.

@group(0) @binding(8) var<storage, read_write> sorted: array<u32>;

override SORT_LEN: u32 = 2048u;
override WG_SIZE: u32 = 256u;
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes

var<workgroup> tile: array<u32, SORT_LEN>;
var<workgroup> wg_row: SelectRow;
var<workgroup> wg_below: u32;
var<workgroup> wg_protected: u32;
var<workgroup> wg_within: u32;

const BY_TILE: bool = true;
const TILE: u32 = 2048u; // slots of the dispatches that list what stays, in radix_long.wgsl

fn clear_staged(index: u32) {
}

fn stage(place: u32, value: u32) {
    tile[place] = value;
}

fn staged(place: u32) -> u32 {
    return tile[place];
}

fn num_staged() -> u32 {
    return SORT_LEN;
}

fn compare_exchange(low: u32, high: u32, ascending: bool) {
    let a = tile[low];
    let b = tile[high];
    if (a > b) == ascending {
        tile[low] = b;
        tile[high] = a;
    }
}

// The pair'th pair of indices at a distance that is a power of two.
fn low_of(pair: u32, distance: u32) -> u32 {
    return (pair / distance) * (2u * distance) + pair % distance;
}

@compute @workgroup_size(WG_SIZE)
fn bitonic_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let local_row = wg.y;
    if index == 0u {
        wg_row = select_row_of(local_row);
        wg_row.row = leave_longer(wg_row.row, SORT_LEN);
        wg_below = 0u;
        wg_protected = 0u;
        wg_within = 0u;
    }
    var s = workgroupUniformLoad(&wg_row);
    let len = select(0u, s.row.len, s.row.active_row);
    var sort_len = 2u;
    while sort_len < len {
        sort_len <<= 1u;
    }
    for (var i = index; i < sort_len; i += WG_SIZE) {
        var key = PAD_KEY;
        if i < len {
            key = key_at(local_row, i);
        }
        tile[i] = key;
    }
    workgroupBarrier();
    for (var size = 2u; size <= sort_len; size <<= 1u) {
        for (var distance = size / 2u; distance > 0u; distance >>= 1u) {
            for (var pair = index; pair < sort_len / 2u; pair += WG_SIZE) {
                let low = low_of(pair, distance);
                compare_exchange(low, low + distance, (low & size) == 0u);
            }
            workgroupBarrier();
        }
    }
    // The numbers of keys 0, up to the limit and below the threshold are where the sorted keys change.
    let limit = s.rule.key_limit;
    for (var i = index; i < len; i += WG_SIZE) {
        if tile[i] == 0u && (i + 1u == len || tile[i + 1u] != 0u) {
            wg_protected = i + 1u;
        }
        if tile[i] <= limit && (i + 1u == len || tile[i + 1u] > limit) {
            wg_within = i + 1u;
        }
    }
    workgroupBarrier();
    s.num_protected = wg_protected;
    s.num_within = wg_within;
    s.budget = row_budget(s);
    let rank = min(max(s.budget, 1u), sort_len) - 1u; // of a row that is left it does not matter
    let threshold = tile[rank];
    for (var i = index; i < rank; i += WG_SIZE) {
        if tile[i] < threshold && tile[i + 1u] == threshold {
            wg_below = i + 1u;
        }
    }
    workgroupBarrier();
    s.threshold = threshold;
    s.num_ties = rank + 1u - wg_below;
    if index == 0u {
        write_row_info(local_row, s, vec4<u32>(s.threshold, s.num_ties, 0u, 0u));
    }
    var below = 0u;
    var equal = 0u;
    for (var base = 0u; base < len; base += 8u * WG_SIZE) {
        let eight = base / 8u + index;
        let keys = mask_keys(load_raw(local_row, eight), len, eight);
        let scanned = emit_tile(index, local_row, s, keys, base, below, equal);
        below += scanned.total & 0xffffu;
        equal += scanned.total >> 16u;
    }
}

// Merges the workgroup's tile at distances below SORT_LEN, for sequences of `size` in the row's own indices.
fn merge_tile(index: u32, tile_base: u32, size: u32) {
    for (var distance = min(size, SORT_LEN) / 2u; distance > 0u; distance >>= 1u) {
        for (var pair = index; pair < SORT_LEN / 2u; pair += WG_SIZE) {
            let low = low_of(pair, distance);
            compare_exchange(low, low + distance, ((tile_base + low) & size) == 0u);
        }
        workgroupBarrier();
    }
}

fn store_tile(index: u32, base: u32) {
    for (var i = index; i < SORT_LEN; i += WG_SIZE) {
        sorted[base + i] = tile[i];
    }
}

@compute @workgroup_size(WG_SIZE)
fn bitonic_tiles(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let len = select_row_of(wg.y).row.len;
    let tile_base = wg.x * SORT_LEN;
    for (var i = index; i < SORT_LEN; i += WG_SIZE) {
        var key = PAD_KEY;
        if tile_base + i < len {
            key = key_at(wg.y, tile_base + i);
        }
        tile[i] = key;
    }
    workgroupBarrier();
    for (var size = 2u; size <= SORT_LEN; size <<= 1u) {
        merge_tile(index, tile_base, size);
    }
    store_tile(index, wg.y * params.sorted_stride + tile_base);
}

@compute @workgroup_size(WG_SIZE)
fn bitonic_step(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let low = low_of(wg.x * WG_SIZE + index, params.merge_stride);
    let base = wg.y * params.sorted_stride;
    let a = sorted[base + low];
    let b = sorted[base + low + params.merge_stride];
    if (a > b) == ((low & params.merge_size) == 0u) {
        sorted[base + low] = b;
        sorted[base + low + params.merge_stride] = a;
    }
}

@compute @workgroup_size(WG_SIZE)
fn bitonic_merge(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile_base = wg.x * SORT_LEN;
    let base = wg.y * params.sorted_stride + tile_base;
    for (var i = index; i < SORT_LEN; i += WG_SIZE) {
        tile[i] = sorted[base + i];
    }
    workgroupBarrier();
    merge_tile(index, tile_base, params.merge_size);
    store_tile(index, base);
}

// The number of the row's sorted keys below a key.
fn num_below(base: u32, len: u32, key: u32) -> u32 {
    var low = 0u;
    var high = len;
    while low < high {
        let middle = (low + high) / 2u;
        if sorted[base + middle] < key {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

@compute @workgroup_size(WG_SIZE)
fn bitonic_pick(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    if wg.x + index == 0u {
        let base = wg.y * params.sorted_stride;
        var s = select_row_of(wg.y);
        s.row = leave_longer(s.row, num.x * TILE);
        s.num_protected = num_below(base, s.row.len, 1u);
        s.num_within = num_below(base, s.row.len, s.rule.key_limit + 1u);
        s.budget = row_budget(s);
        let rank = max(s.budget, 1u) - 1u;
        let threshold = sorted[base + rank];
        s.threshold = threshold;
        s.num_ties = rank + 1u - num_below(base, s.row.len, threshold);
        write_row_info(wg.y, s, vec4<u32>(s.threshold, s.num_ties, 0u, 0u));
    }
}
