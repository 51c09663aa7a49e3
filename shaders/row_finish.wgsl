//! row_finish: positions, lengths and status of the rows of up to four layers that row_apart.wgsl has compressed.
//! Source: state.wgsl. Reference: src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 state_meta read_write u32, by StateLayout
//!   2 positions read_write u32 [row, capacity] original position
//!   3 status read_write atomic u32 [layer] sticky bits
//!   4 lists0 read u32 [row, lists_stride] slots, positions, result
//!   5 lists1 read u32, likewise
//!   6 lists2 read u32, likewise
//!   7 lists3 read u32, likewise
//! Entry points: finish_rows · dispatch (ceil(max_budget / WG_SIZE), rows_per_layer, layers up to 4) · none
//! Overrides: WG_SIZE = 256
//! Workgroup bytes: 0
//! Algorithm: an invocation copies the position of a kept slot; the first of a row writes its length.
//! Invariants: lengths are read from the results alone, so that the one invocation that writes state_meta races with
//!   nobody.

struct Params {
    state: StateLayout,
    layer0: u32,
    layer1: u32,
    layer2: u32,
    layer3: u32,
    lists_stride: u32,   // words between rows of lists
    staged_offset: u32,  // words from a row's slots to its positions
    result_offset: u32,  // words from a row's slots to its result
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> state_meta: array<u32>;
@group(0) @binding(2) var<storage, read_write> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read> lists0: array<u32>;
@group(0) @binding(5) var<storage, read> lists1: array<u32>;
@group(0) @binding(6) var<storage, read> lists2: array<u32>;
@group(0) @binding(7) var<storage, read> lists3: array<u32>;

override WG_SIZE: u32 = 256u;

fn list_word(which: u32, ix: u32) -> u32 {
    switch which {
        case 0u: { return lists0[ix]; }
        case 1u: { return lists1[ix]; }
        case 2u: { return lists2[ix]; }
        default: { return lists3[ix]; }
    }
}

fn layer_of(which: u32) -> u32 {
    switch which {
        case 0u: { return params.layer0; }
        case 1u: { return params.layer1; }
        case 2u: { return params.layer2; }
        default: { return params.layer3; }
    }
}

@compute @workgroup_size(WG_SIZE)
fn finish_rows(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let list_base = wg.y * params.lists_stride;
    let result = list_base + params.result_offset;
    if list_word(wg.z, result) == 0u {
        return;
    }
    let budget = list_word(wg.z, result + 1u);
    let layer = layer_of(wg.z);
    let state_row = layer * params.state.rows_per_layer + wg.y;
    let slot = wg.x * WG_SIZE + index;
    if slot < budget {
        let ix = params.state.positions_base + state_row * params.state.capacity + slot;
        positions[ix] = list_word(wg.z, list_base + params.staged_offset + slot);
    }
    if slot == 0u {
        state_meta[params.state.lengths_base + state_row] = budget;
        state_meta[params.state.compacted_base + state_row] = budget;
        state_meta[params.state.scored_base + state_row] = 0u;
        let bits = list_word(wg.z, result + 2u);
        if bits != 0u {
            atomicOr(&status[layer], bits);
        }
    }
}
