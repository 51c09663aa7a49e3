//! compact_bands: moves the kept rows of one tensor whose rows exceed a binding, a pair of bands at a time.
//! Source: as compact.wgsl. Reference: src/reference/compact.rs, exact.
//! Bindings:
//!   0 params uniform Params
//!   1 keys read_write u32 words of the band that rows come from; keys or values (shared/keys_*.wgsl)
//!   2 front read_write u32 words of the band that they go to; absent when it is the same
//!   3 lists read u32 [row, lists_stride]
//!   4 row_infos read RowInfo [row]
//! Entry points: move_pair · dispatch (any, num_rows, 1) · none: walks on by its grid
//!   walk_band · dispatch (ceil(KEY_CHUNKS / KEY_SLICE), num_rows, 1) · none
//! Overrides: WG_SIZE = 256; KEY_CHUNKS = 16, in 2..=128; KEY_LANES = 16, in 1..=48; KEY_SLICE = 4, chunks of a column
//!   slice, at most WG_SIZE; KEY_WORDS = 33
//! Workgroup bytes: 8
//! Algorithm: sources and destinations both ascend, so the moves from one band to another are neighbours in the
//!   row's list: two binary searches find them. move_pair moves them at once. Positional moves within a band go
//!   upwards by walk_band, a workgroup to a column slice, a tile of loads, a barrier, the stores.
//! Invariants: pairs are recorded by ascending source, then destination. A destination's slot holds no row that is still
//!   to move: fill's sources and destinations are disjoint, and a positional source in an earlier band has left
//!   before. Within a band dst(j) <= src(j) < src(j + 1), as in compact.wgsl.

struct Params {
    tensor: TensorLayout,
    store_shift: u32,    // units from an address in the source's band to the same in the destination's, modulo 2^32
    num_rows: u32,       // rows of this group
    first_row: u32,      // row of the layer that is row 0 here
    first_sequence: u32,
    num_kv_heads: u32,
    lists_stride: u32,   // words
    first_info: u32,     // index of row 0 in row_infos
    order: u32,          // 0 fill, 1 positional
    first_source: u32,   // slots of the band that rows come from
    end_source: u32,
    first_slot: u32,     // slots of the band that they go to
    end_slot: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> lists: array<u32>;
@group(0) @binding(4) var<storage, read> row_infos: array<RowInfo>;

override KEY_WORDS: u32 = 33u; // of rows that are moved by words
override WG_SIZE: u32 = 256u;
override KEY_CHUNKS: u32 = 16u;
override KEY_LANES: u32 = 16u;
override KEY_SLICE: u32 = 4u;

const POSITIONAL: u32 = 1u;

struct Moves {
    first: u32,   // of the row's moves, those of this pair
    end: u32,
}

var<workgroup> wg_moves: Moves;

fn row_base_of(local_row: u32) -> u32 {
    return place_of(params.tensor, 0u, params.first_row + local_row, params.num_kv_heads);
}

// Words of `lists` from move 0 to its source.
fn sources_of(local_row: u32) -> u32 {
    let info = row_infos[params.first_info + local_row];
    let first_mover = select(len_of(info) - num_moved_of(info), 0u, params.order == POSITIONAL);
    return local_row * params.lists_stride + first_mover;
}

fn slot_of(local_row: u32, j: u32) -> u32 {
    if params.order == POSITIONAL {
        return j;
    }
    return lists[local_row * params.lists_stride + j];
}

// The first move of a range whose source and destination have both reached these slots, or only one of the two.
fn lower_bound(local_row: u32, moves: Moves, source: u32, slot: u32, both: bool) -> u32 {
    let sources = sources_of(local_row);
    var low = moves.first;
    var high = moves.end;
    while low < high {
        let middle = low + (high - low) / 2u;
        let source_reached = lists[sources + middle] >= source;
        let slot_reached = slot_of(local_row, middle) >= slot;
        if (both && source_reached && slot_reached) || (!both && (source_reached || slot_reached)) {
            high = middle;
        } else {
            low = middle + 1u;
        }
    }
    return low;
}

fn moves_of(local_row: u32) -> Moves {
    let info = row_infos[params.first_info + local_row];
    var all = Moves(0u, num_moved_of(info));
    if params.order == POSITIONAL {
        let budget = select(0u, budget_of(info), is_active(info));
        all = Moves(min(info.first_moved, budget), budget);
    }
    let first = lower_bound(local_row, all, params.first_source, params.first_slot, true);
    let end = lower_bound(local_row, all, params.end_source, params.end_slot, false);
    return Moves(first, end);
}

@compute @workgroup_size(WG_SIZE)
fn move_pair(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    if index == 0u {
        wg_moves = moves_of(wg.y);
    }
    let moves = workgroupUniformLoad(&wg_moves);
    let groups = WG_SIZE / KEY_LANES;
    let lane = index % KEY_LANES;
    let row_base = row_base_of(wg.y);
    let sources = sources_of(wg.y);
    let stride = params.tensor.token_stride;
    if index >= groups * KEY_LANES {
        return;
    }
    for (var j = moves.first + wg.x * groups * 4u + index / KEY_LANES; j < moves.end; j += num_workgroups.x * groups * 4u) {
        let last = moves.end - 1u;
        let j1 = j + groups;
        let j2 = j1 + groups;
        let j3 = j2 + groups;
        let s0 = row_base + lists[sources + j] * stride;
        let s1 = row_base + lists[sources + min(j1, last)] * stride;
        let s2 = row_base + lists[sources + min(j2, last)] * stride;
        let s3 = row_base + lists[sources + min(j3, last)] * stride;
        let d0 = row_base + slot_of(wg.y, j) * stride;
        let d1 = row_base + slot_of(wg.y, min(j1, last)) * stride;
        let d2 = row_base + slot_of(wg.y, min(j2, last)) * stride;
        let d3 = row_base + slot_of(wg.y, min(j3, last)) * stride;
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

@compute @workgroup_size(WG_SIZE)
fn walk_band(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    if index == 0u {
        wg_moves = moves_of(wg.y);
    }
    let moves = workgroupUniformLoad(&wg_moves);
    let c = wg.x * KEY_SLICE + index % KEY_SLICE;
    let pieces = WG_SIZE / KEY_SLICE;
    let valid = c < KEY_CHUNKS && index < pieces * KEY_SLICE;
    let row_base = row_base_of(wg.y);
    let sources = sources_of(wg.y);
    let stride = params.tensor.token_stride;
    let last = max(moves.end, 1u) - 1u;
    for (var base = moves.first; base < moves.end; base += 4u * pieces) {
        let r0 = base + index / KEY_SLICE;
        let r1 = r0 + 1u * pieces;
        let r2 = r0 + 2u * pieces;
        let r3 = r0 + 3u * pieces;
        var c0 = vec4<u32>(0u);
        var c1 = vec4<u32>(0u);
        var c2 = vec4<u32>(0u);
        var c3 = vec4<u32>(0u);
        if valid {
            c0 = load_key_chunk(row_base + lists[sources + min(r0, last)] * stride, c);
            c1 = load_key_chunk(row_base + lists[sources + min(r1, last)] * stride, c);
            c2 = load_key_chunk(row_base + lists[sources + min(r2, last)] * stride, c);
            c3 = load_key_chunk(row_base + lists[sources + min(r3, last)] * stride, c);
        }
        // Every load of this tile comes before any of its stores, which may land on its own sources.
        storageBarrier();
        if valid && r0 < moves.end {
            store_key_chunk(row_base + r0 * stride, c, c0);
        }
        if valid && r1 < moves.end {
            store_key_chunk(row_base + r1 * stride, c, c1);
        }
        if valid && r2 < moves.end {
            store_key_chunk(row_base + r2 * stride, c, c2);
        }
        if valid && r3 < moves.end {
            store_key_chunk(row_base + r3 * stride, c, c3);
        }
    }
}
