//! compact: moves the kept keys and values of each row to its front, in place, bit for bit.
//! Source: filling holes as in KV-Compress, https://arxiv.org/abs/2410.00161; ascending forward copies as in
//!   https://github.com/NVIDIA/TensorRT-LLM/pull/16836. Reference: src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write u32 words, addressed by shared/address_*.wgsl; of layers in arrays group 1, binding 0
//!   2 values read_write u32 words, likewise, in arrays binding 1; absent when bound with the keys
//!   3 lists read u32 [row, lists_stride]
//!   4 row_infos read RowInfo [row]
//!   5 starts read_write u32 [row, STARTS] the rank at which a range begins, as the one before has left it
//!   8 page_table read_write u32 [sequence, table_stride] page ids; of a paged cache alone
//! Entry points: fill · dispatch (any, 2, num_rows) · none: goes round by its grid, since keys alone may tell how much is kept
//!   walk · dispatch (key slices + value slices, num_rows, 1) · none
//!   range · dispatch (any, 2, num_rows) · none: walks on by its grid
//! Overrides: WG_SIZE = 256; KEY_CHUNKS, VALUE_CHUNKS = 16, in 2..=128; KEY_LANES, VALUE_LANES = 16, in 1..=48;
//!   KEY_SLICE, VALUE_SLICE = 4, chunks of a column slice, at most WG_SIZE; PAGE_SIZE = 16; KEY_WORDS, VALUE_WORDS = 33;
//!   PACED = false; NUM_LAYERS = 1, in the arrays
//! Workgroup bytes: 8
//! Algorithm: fill: the j-th kept slot at or beyond the budget goes to the j-th hole below it; sources and destinations
//!   are disjoint, so the order of workgroups does not matter. Positional: `walk`, a workgroup to a column slice of a row,
//!   takes the kept slots upwards, a tile of loads, a barrier, the stores. Where that leaves the card idle, it takes only
//!   the first walk_len ranks; then each `range` moves as many ranks at once as have their sources beyond all of their
//!   destinations, [a, src(a)), and a last `walk` takes what a fixed number of ranges has left. Each range leaves its end for
//!   the next: to find it again would take a load from memory for each range before.
//! Invariants: dst(j) <= src(j) < src(j + 1), so a tile's stores never land on a later tile's sources, and no other
//!   workgroup touches the slice. Rows move as u32, never through floats.

struct Params {
    keys: TensorLayout,
    values: TensorLayout,
    num_rows: u32,       // rows of this window
    first_row: u32,      // row of the first layer that is row 0 here
    first_sequence: u32,
    num_kv_heads: u32,
    lists_stride: u32,   // words
    first_info: u32,     // index of row 0 in row_infos
    walk_len: u32,       // ranks that the first walk takes
    range_ix: u32,       // ranges before this dispatch; of a first walk 0xffffffff
    table_base: u32,     // words: of a paged cache, sequence 0's row of the table
    table_stride: u32,   // words
    rows_per_layer: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> lists: array<u32>;
@group(0) @binding(4) var<storage, read> row_infos: array<RowInfo>;
@group(0) @binding(5) var<storage, read_write> starts: array<u32>;

override WG_SIZE: u32 = 256u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override VALUE_CHUNKS: u32 = 16u;
override VALUE_LANES: u32 = 16u;
override KEY_SLICE: u32 = 4u;
override VALUE_SLICE: u32 = 4u;
override KEY_WORDS: u32 = 33u; // of keys that are moved by words
override VALUE_WORDS: u32 = 33u; // likewise
override PACED: bool = false; // the stores of a tile of a walk begin together
override NUM_LAYERS: u32 = 1u; // in arrays of buffers

const STARTS: u32 = 64u;

fn place_of_row(t: TensorLayout, local_row: u32) -> Place {
    let layer_row = divided(params.first_row + local_row, params.rows_per_layer);
    return place_of(t, layer_row.quotient, layer_row.rest, params.num_kv_heads);
}

fn hole_at(local_row: u32, j: u32) -> u32 {
    return lists[local_row * params.lists_stride + j];
}

fn mover_at(local_row: u32, len: u32, num_moved: u32, j: u32) -> u32 {
    return lists[local_row * params.lists_stride + len - num_moved + j];
}

fn kept_at(local_row: u32, rank: u32) -> u32 {
    return lists[local_row * params.lists_stride + rank];
}

@compute @workgroup_size(WG_SIZE)
fn fill(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    // A row's keys and values one after the other: buffers of a layer are likely to lie side by side.
    let info = row_infos[params.first_info + wg.z];
    let num_moved = num_moved_of(info);
    if wg.y == 0u {
        fill_keys_part(wg.z, wg.x, num_workgroups.x, index, len_of(info), num_moved);
    } else {
        fill_values_part(wg.z, wg.x, num_workgroups.x, index, len_of(info), num_moved);
    }
}

struct Ranks {
    first: u32,
    end: u32,
}

var<workgroup> wg_ranks: Ranks;

// The ranks of a dispatch: of the first walk, of a range, or what the ranges have left.
fn ranks_of(local_row: u32, is_range: bool) -> Ranks {
    let info = row_infos[params.first_info + local_row];
    let budget = select(0u, budget_of(info), is_active(info));
    let walked = min(max(info.first_moved, params.walk_len), budget);
    if params.range_ix == 0xffffffffu {
        return Ranks(info.first_moved, walked);
    }
    var first = walked;
    if params.range_ix > 0u {
        first = min(starts[local_row * STARTS + params.range_ix], budget);
    }
    if is_range && first < budget {
        return Ranks(first, min(lists[local_row * params.lists_stride + first], budget));
    }
    return Ranks(first, budget);
}

@compute @workgroup_size(WG_SIZE)
fn walk(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    if index == 0u {
        wg_ranks = ranks_of(wg.y, false);
    }
    let ranks = workgroupUniformLoad(&wg_ranks);
    let key_slices = (KEY_CHUNKS + KEY_SLICE - 1u) / KEY_SLICE;
    if wg.x < key_slices {
        walk_keys(wg.y, wg.x, index, ranks.end, ranks.first);
    } else {
        walk_values(wg.y, wg.x - key_slices, index, ranks.end, ranks.first);
    }
}

fn range_keys(wg: vec3<u32>, num_workgroups: u32, index: u32, from_rank: u32, to_rank: u32) {
    let groups = WG_SIZE / KEY_LANES;
    let lane = index % KEY_LANES;
    let list_base = wg.z * params.lists_stride;
    let place = place_of_row(params.keys, wg.z);
    if index >= groups * KEY_LANES {
        return;
    }
    for (var j = from_rank + wg.x * groups * 4u + index / KEY_LANES; j < to_rank; j += num_workgroups * groups * 4u) {
        let last = to_rank - 1u;
        let j1 = j + groups;
        let j2 = j1 + groups;
        let j3 = j2 + groups;
        let s0 = token_base(params.keys, place, lists[list_base + j]);
        let s1 = token_base(params.keys, place, lists[list_base + min(j1, last)]);
        let s2 = token_base(params.keys, place, lists[list_base + min(j2, last)]);
        let s3 = token_base(params.keys, place, lists[list_base + min(j3, last)]);
        let d0 = token_base(params.keys, place, j);
        let d1 = token_base(params.keys, place, min(j1, last));
        let d2 = token_base(params.keys, place, min(j2, last));
        let d3 = token_base(params.keys, place, min(j3, last));
        for (var c = lane; c < KEY_CHUNKS; c += KEY_LANES) {
            let c0 = load_key_chunk(s0, c);
            let c1 = load_key_chunk(s1, c);
            let c2 = load_key_chunk(s2, c);
            let c3 = load_key_chunk(s3, c);
            store_key_chunk(d0, c, c0);
            if j1 <= last {
                store_key_chunk(d1, c, c1);
            }
            if j2 <= last {
                store_key_chunk(d2, c, c2);
            }
            if j3 <= last {
                store_key_chunk(d3, c, c3);
            }
        }
    }
}

fn range_values(wg: vec3<u32>, num_workgroups: u32, index: u32, from_rank: u32, to_rank: u32) {
    let groups = WG_SIZE / VALUE_LANES;
    let lane = index % VALUE_LANES;
    let list_base = wg.z * params.lists_stride;
    let place = place_of_row(params.values, wg.z);
    if index >= groups * VALUE_LANES {
        return;
    }
    for (var j = from_rank + wg.x * groups * 4u + index / VALUE_LANES; j < to_rank; j += num_workgroups * groups * 4u) {
        let last = to_rank - 1u;
        let j1 = j + groups;
        let j2 = j1 + groups;
        let j3 = j2 + groups;
        let s0 = token_base(params.values, place, lists[list_base + j]);
        let s1 = token_base(params.values, place, lists[list_base + min(j1, last)]);
        let s2 = token_base(params.values, place, lists[list_base + min(j2, last)]);
        let s3 = token_base(params.values, place, lists[list_base + min(j3, last)]);
        let d0 = token_base(params.values, place, j);
        let d1 = token_base(params.values, place, min(j1, last));
        let d2 = token_base(params.values, place, min(j2, last));
        let d3 = token_base(params.values, place, min(j3, last));
        for (var c = lane; c < VALUE_CHUNKS; c += VALUE_LANES) {
            let c0 = load_value_chunk(s0, c);
            let c1 = load_value_chunk(s1, c);
            let c2 = load_value_chunk(s2, c);
            let c3 = load_value_chunk(s3, c);
            store_value_chunk(d0, c, c0);
            if j1 <= last {
                store_value_chunk(d1, c, c1);
            }
            if j2 <= last {
                store_value_chunk(d2, c, c2);
            }
            if j3 <= last {
                store_value_chunk(d3, c, c3);
            }
        }
    }
}

@compute @workgroup_size(WG_SIZE)
fn range(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    if index == 0u {
        wg_ranks = ranks_of(wg.z, true);
    }
    let ranks = workgroupUniformLoad(&wg_ranks);
    if wg.x + wg.y + index == 0u {
        starts[wg.z * STARTS + params.range_ix + 1u] = ranks.end;
    }
    if wg.y == 0u {
        range_keys(wg, num_workgroups.x, index, ranks.first, ranks.end);
    } else {
        range_values(wg, num_workgroups.x, index, ranks.first, ranks.end);
    }
}
