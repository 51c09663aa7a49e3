//! pages: the page tables of a paged cache: checked before a compression, and what it frees listed after it.
//! Source: page-granular freeing as in KV-Compress, https://arxiv.org/abs/2410.00161; the check is our own. Reference:
//!   src/reference/pages.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 page_table read_write u32 [sequence, table_stride] page ids
//!   2 state_meta read_write u32, by StateLayout
//!   3 marks read_write atomic u32 [page] writers of a page, and whether it has readers
//!   4 status read_write atomic u32 [layer] sticky bits
//!   5 freed read_write u32 [layer, sequence, freed_stride]: pages freed, pages kept, longest length, pages before, ids
//! Entry points: mark · dispatch (batch_size, ceil(pages of the capacity / WG_SIZE), 1) · none
//!   verify · dispatch (batch_size, 1, 1) · none
//!   free · dispatch (batch_size, num_layers, 1) · none
//!   clear · dispatch (any, any, 1) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 8208
//! Algorithm: mark counts, for each page in use, the sequences that may write it and notes those that only read it.
//!   verify, a workgroup to a sequence, sets a bit for each page of its own in workgroup memory, 65536 ids at a time, so
//!   that an id that comes twice is found, and looks whether another sequence has a page that it may write. free takes
//!   the longest head of each layer: the pages after it are free.
//! Invariants: what is found does not depend on the order of workgroups: counts commute. A sequence that is inactive is not
//!   looked at. Ids are compared with num_pages before they index anything. free leaves marks zero for the next call; where
//!   nothing is freed, clear does, so that what was freed last can still be read.

struct Params {
    state: StateLayout,
    first_layer: u32,   // layers that share this table
    num_layers: u32,
    num_pages: u32,     // of the pool
    first_page: u32,    // lower ids are not given to sequences: 1 where page 0 is a sentinel
    table_base: u32,    // words: sequence 0's row of the table
    table_stride: u32,  // words
    page_size: u32,     // tokens
    freed_stride: u32,  // words
    skipped_base: u32,  // word index of skipped[layer, sequence]
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> page_table: array<u32>;
@group(0) @binding(2) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(3) var<storage, read_write> marks: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> freed: array<u32>;

override WG_SIZE: u32 = 256u;
const STATUS_BAD_PAGE: u32 = 4u;
const READER: u32 = 0x80000000u;
const NUM_IDS: u32 = 65536u;
const HEADER_WORDS: u32 = 4u;

var<workgroup> wg_used: atomic<u32>;
var<workgroup> wg_bad: atomic<u32>;
var<workgroup> seen: array<atomic<u32>, NUM_IDS / 32u>;

// Longest head of a sequence in a layer, tokens.
fn longest(layer: u32, sequence: u32) -> u32 {
    let s = params.state;
    let first = s.lengths_base + layer * s.rows_per_layer + sequence * s.num_kv_heads;
    var len = 0u;
    for (var head = 0u; head < s.num_kv_heads; head++) {
        len = max(len, state_meta[first + head]);
    }
    return min(len, s.capacity);
}

fn pages_of(len: u32) -> u32 {
    return (len + params.page_size - 1u) / params.page_size;
}

fn is_active(sequence: u32) -> bool {
    return state_meta[params.state.inactive_base + sequence] == 0u;
}

fn header_of(layer: u32, sequence: u32) -> u32 {
    return (layer * params.state.batch_size + sequence) * params.freed_stride;
}

// Entries of the table that some layer uses, into wg_used. Ends at a barrier.
fn count_used(index: u32, sequence: u32) {
    if index == 0u {
        atomicStore(&wg_used, 0u);
        atomicStore(&wg_bad, 0u);
    }
    workgroupBarrier();
    for (var i = index; i < params.num_layers; i += WG_SIZE) {
        atomicMax(&wg_used, pages_of(longest(params.first_layer + i, sequence)));
    }
    workgroupBarrier();
}

fn is_writable(sequence: u32, page_ix: u32) -> bool {
    return page_ix >= state_meta[params.state.writable_base + sequence];
}

@compute @workgroup_size(WG_SIZE)
fn mark(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    count_used(index, wg.x);
    let used = select(0u, atomicLoad(&wg_used), is_active(wg.x));
    for (var i = wg.y * WG_SIZE + index; i < used; i += num_workgroups.y * WG_SIZE) {
        let page = page_table[params.table_base + wg.x * params.table_stride + i];
        if page < params.num_pages {
            if is_writable(wg.x, i) {
                atomicAdd(&marks[page], 1u);
            } else {
                atomicOr(&marks[page], READER);
            }
        }
    }
}

// One entry, of which the ids from `first_id` on are being looked at.
fn verify_entry(sequence: u32, page_ix: u32, page: u32, first_id: u32) {
    if page < params.first_page || page >= params.num_pages {
        atomicStore(&wg_bad, 1u);
        return;
    }
    let id = page - first_id;
    if page < first_id || id >= NUM_IDS {
        return;
    }
    let bit = 1u << (id % 32u);
    let is_repeated = (atomicOr(&seen[id / 32u], bit) & bit) != 0u;
    if is_repeated || (is_writable(sequence, page_ix) && atomicLoad(&marks[page]) != 1u) {
        atomicStore(&wg_bad, 1u);
    }
}

@compute @workgroup_size(WG_SIZE)
fn verify(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let sequence = wg.x;
    count_used(index, sequence);
    let active_sequence = is_active(sequence);
    let used = select(0u, atomicLoad(&wg_used), active_sequence);
    let row = params.table_base + sequence * params.table_stride;
    for (var first_id = 0u; first_id < params.num_pages; first_id += NUM_IDS) {
        for (var w = index; w < NUM_IDS / 32u; w += WG_SIZE) {
            atomicStore(&seen[w], 0u);
        }
        workgroupBarrier();
        for (var i = index; i < used; i += 4u * WG_SIZE) {
            // Four loads are in flight before the first is used.
            let i1 = i + WG_SIZE;
            let i2 = i1 + WG_SIZE;
            let i3 = i2 + WG_SIZE;
            let p0 = page_table[row + i];
            let p1 = page_table[row + min(i1, used - 1u)];
            let p2 = page_table[row + min(i2, used - 1u)];
            let p3 = page_table[row + min(i3, used - 1u)];
            verify_entry(sequence, i, p0, first_id);
            if i1 < used {
                verify_entry(sequence, i1, p1, first_id);
            }
            if i2 < used {
                verify_entry(sequence, i2, p2, first_id);
            }
            if i3 < used {
                verify_entry(sequence, i3, p3, first_id);
            }
        }
        workgroupBarrier();
    }
    let is_bad = atomicLoad(&wg_bad) != 0u;
    for (var i = index; i < params.num_layers; i += WG_SIZE) {
        let layer = params.first_layer + i;
        let len = longest(layer, sequence);
        state_meta[params.skipped_base + layer * params.state.batch_size + sequence] =
            select(select(0u, 2u, is_bad), 1u, !active_sequence);
        freed[header_of(layer, sequence) + 3u] = pages_of(len);
        if is_bad {
            atomicOr(&status[layer], STATUS_BAD_PAGE);
        }
    }
}

fn clear_marks(wg: vec3<u32>, num_workgroups: vec3<u32>, index: u32) {
    let workgroup_ix = wg.y * num_workgroups.x + wg.x;
    let stride = num_workgroups.x * num_workgroups.y * WG_SIZE;
    for (var m = workgroup_ix * WG_SIZE + index; m < params.num_pages; m += stride) {
        atomicStore(&marks[m], 0u);
    }
}

@compute @workgroup_size(WG_SIZE)
fn free(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let layer = params.first_layer + wg.y;
    let sequence = wg.x;
    let header = header_of(layer, sequence);
    let skipped = state_meta[params.skipped_base + layer * params.state.batch_size + sequence] != 0u;
    let len = longest(layer, sequence);
    let before = freed[header + 3u];
    let kept = select(min(pages_of(len), before), before, skipped);
    if index == 0u {
        freed[header] = before - kept;
        freed[header + 1u] = kept;
        freed[header + 2u] = len;
    }
    for (var i = kept + index; i < before; i += WG_SIZE) {
        freed[header + HEADER_WORDS + i - kept] = page_table[params.table_base + sequence * params.table_stride + i];
    }
    clear_marks(wg, num_workgroups, index);
}

@compute @workgroup_size(WG_SIZE)
fn clear(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    clear_marks(wg, num_workgroups, index);
}
