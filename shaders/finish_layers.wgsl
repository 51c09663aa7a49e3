//! finish_layers: what state.wgsl does, for rows of many layers that have scratch of their own.
//! Source: state.wgsl. Reference: src/reference/compact.rs, exact.
//! Bindings: shared/lists_16.wgsl, or the first four of them (shared/lists_4.wgsl), and
//!   0 params uniform Params
//!   1 state_meta read_write u32, by StateLayout
//!   2 positions read_write u32 [row, capacity] original position
//!   3 status read_write atomic u32 [layer] sticky bits
//! Entry points: finish_layers · dispatch (any, rows_per_layer, layers up to the number of lists) · none: goes round for
//!   more slots
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 64
//! Algorithm: as state.wgsl. What layers have of their own is a buffer each, so that the dispatches before this share none
//!   that they write; this one binds the scratch of as many layers as it can.
//! Invariants: as those of state.wgsl. The score's status bits are a layer's, not a row's, and told by its first row.

struct Params {
    state: StateLayout,
    layers: array<vec4<u32>, 4>, // the state's layers
    lists_stride: u32,           // words between rows of lists
    staged_offset: u32,          // words from a row's slots to its staged positions, or bits of kept slots
    infos_base: u32,             // words from a layer's lists to its row infos
    status_base: u32,            // and to its status bits
    order: u32,                  // 0 fill, 1 positional
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read_write> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;

// Norms are not cached here.
fn place_norm(to: u32, which: u32, listed_ix: u32) {
}

fn move_norm(to: u32, source: u32) {
}

var<workgroup> wg_info: array<u32, INFO_WORDS>;

// A load for each of the first invocations, and one only: which list to load from is a branch.
fn info_of(which: u32, row: u32, index: u32) -> RowInfo {
    if index < INFO_WORDS {
        wg_info[index] = list_word(which, params.infos_base + row * INFO_WORDS + index);
    }
    workgroupBarrier();
    var info: RowInfo;
    info.len = wg_info[LEN_IX];
    info.budget = wg_info[BUDGET_IX];
    info.num_moved = wg_info[NUM_MOVED_IX];
    info.compacted = wg_info[COMPACTED_IX];
    info.num_seen = wg_info[NUM_SEEN_IX];
    info.active_row = wg_info[ACTIVE_ROW_IX];
    info.status = wg_info[STATUS_IX];
    return info;
}

@compute @workgroup_size(WG_SIZE)
fn finish_layers(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let layer = params.layers[wg.z / 4u][wg.z % 4u];
    let info = info_of(wg.z, wg.y, index);
    let is_first = wg.x == 0u && index == 0u;
    if is_first && wg.y == 0u {
        let bits = list_word(wg.z, params.status_base);
        if bits != 0u {
            atomicOr(&status[layer], bits);
        }
    }
    if info.active_row == 0u || info.len == 0u {
        return;
    }
    let state_row = layer * params.state.rows_per_layer + wg.y;
    for (var j = wg.x * WG_SIZE + index; j < info.budget; j += num.x * WG_SIZE) {
        finish_slot(wg.z, wg.y * params.lists_stride, info, state_row, j);
    }
    if is_first {
        finish_row(info, state_row, layer, 0u);
    }
}
