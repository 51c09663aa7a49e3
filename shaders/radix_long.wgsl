//! radix_long: the kept slots of rows of any length, a workgroup to a tile, from the histogram of their first digits or
//!   from the threshold of sorted rows.
//! Source: histogram selection as in J. Zhang et al., "Parallel Top-K Algorithms on GPU", SC '23; setting aside the bin of
//!   the threshold and the deterministic emission are our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl, and
//!   6 histogram read_write vec4<u32> [row, histogram_stride / 4]: counts of first digits, a quad of other counts, and a
//!     quad for each tile: its keys below the bin, keys of the bin (of sorted rows, keys below and equal to the threshold),
//!     and of many keys of the bin the least and the greatest
//! Entry points: collect, emit · dispatch (ceil(max_len / (8 * WG_SIZE)), num_rows, 1) · none | subgroups
//!   settle · dispatch (1, num_rows, 1) · none | subgroups: between them where tiles are many
//! Overrides: WG_SIZE = 256, of settle 256 or 1024; IN_ORDER = false; FROM_SORTED = false;
//!   MORE_TILES = false
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 112
//! Algorithm: the score stage or `count_digits` has counted first digits. `collect` finds the bin of the threshold, counts
//!   the keys below it in each tile and sets the keys of the bin aside, by tiles, as shared/aside.wgsl has it. `emit` finds
//!   the threshold among them, each workgroup for itself, sums what lies in the tiles before its own and emits. Many
//!   workgroups would read what is aside many times: there `settle` leaves the threshold and each tile's counts as those of
//!   sorted rows. Of a bin of many keys tiles leave their own sorted, so that only those of one more digit are read.
//!   What takes time here is instructions that run once, fetched as they come: so rows are read by every invocation,
//!   without a barrier, loops stay rolled, and what can be known before is left in RowInfo.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run; the order in which keys
//!   are set aside is not, but they are only counted. `emit` or `settle` leaves the histogram zero for the next call. Any
//!   distribution of keys is exact; only one of many keys which two digits do not tell apart makes many of them be read.

@group(0) @binding(6) var<storage, read_write> histogram: array<vec4<u32>>;

override WG_SIZE: u32 = 256u;
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes
override FROM_SORTED: bool = false; // the threshold is in row_infos already
override MORE_TILES: bool = false; // rows may have more tiles than the workgroup invocations

const SLOT_WORDS: u32 = 0u;
const TILE: u32 = 2048u; // slots: eight an invocation
const COUNTS_IX: u32 = PROTECTED_COUNT_IX / 4u; // a row's quad of protected keys, tiles taken, keys up to the limit, nothing

var<workgroup> wg_below: atomic<u32>;
var<workgroup> wg_equal: atomic<u32>;

fn clear_sums(index: u32) {
    if index == 0u {
        atomicStore(&wg_below, 0u);
        atomicStore(&wg_equal, 0u);
    }
}

// Sums over the workgroup. What was written before can be read after this.
fn sums_of(below: u32, equal: u32) -> vec2<u32> {
    atomicAdd(&wg_below, below);
    atomicAdd(&wg_equal, equal);
    workgroupBarrier();
    return vec2<u32>(atomicLoad(&wg_below), atomicLoad(&wg_equal));
}

fn row_quad(local_row: u32) -> u32 {
    return local_row * (params.histogram_stride / 4u);
}

fn tile_quad(local_row: u32, tile: u32) -> u32 {
    return row_quad(local_row) + params.tile_counts_base / 4u + tile;
}

// A tile's keys below the threshold's bin, and those aside: no more than it has, so that loops over them end whatever
// the counts hold.
fn tile_counts(local_row: u32, tile: u32) -> vec2<u32> {
    return min(histogram[tile_quad(local_row, tile)].xy, vec2<u32>(TILE));
}

// Finds the bin of a rank, of which each invocation has eight. Ends at a barrier.
fn bin_of_rank(index: u32, low: vec4<u32>, high: vec4<u32>, rank: u32) -> Found {
    // Keys up to the end of each of them.
    let a = vec4<u32>(low.x, low.x + low.y, low.x + low.y + low.z, low.x + low.y + low.z + low.w);
    let b = a.w + vec4<u32>(high.x, high.x + high.y, high.x + high.y + high.z, high.x + high.y + high.z + high.w);
    let before = exclusive_scan(index, b.w).before;
    if rank >= before && rank - before < b.w {
        let r = vec4<u32>(rank - before);
        let starts = max(select(vec4<u32>(0u), a, a <= r), select(vec4<u32>(0u), b, b <= r));
        let ends = min(select(a, b.wwww, a <= r), select(b, b.wwww, b <= r));
        let start = max(max(starts.x, starts.y), max(starts.z, starts.w));
        let end = min(min(ends.x, ends.y), min(ends.z, ends.w));
        wg_found = Found(index * 8u + ones(a <= r) + ones(b <= r), r.x - start, end - start);
    }
    return workgroupUniformLoad(&wg_found);
}

fn collect_tile(wg: vec3<u32>, num_tiles: u32, index: u32) {
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    if FROM_SORTED {
        let info = row_infos[params.first_info + wg.y];
        let counts = count_keys(mask_keys(raw, len_of(info), eight), info.threshold.x);
        clear_sums(index);
        workgroupBarrier();
        let sums = sums_of(counts & 0xffffu, counts >> 16u);
        if index == 0u {
            histogram[tile_quad(wg.y, wg.x)] = vec4<u32>(sums, 0u, 0u);
        }
        return;
    }
    let low = histogram[row_quad(wg.y) + 2u * index];
    let high = histogram[row_quad(wg.y) + 2u * index + 1u];
    let counts = histogram[row_quad(wg.y) + COUNTS_IX];
    var s = select_row_of(wg.y);
    s.num_protected = counts.x;
    s.num_within = counts.z;
    s.budget = row_budget(s);
    if index == 0u {
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
        atomicStore(&wg_count, 0u);
    }
    clear_sums(index);
    let found = bin_of_rank(index, low, high, max(s.budget, 1u) - 1u);
    // Of an inactive row nothing has been counted, and what its keys hold is not set aside.
    let k = mask_keys(raw, select(0u, s.row.len, s.row.active_row), eight);
    let bin = keys_of_bin(found.digit);
    let of_bin = bits_of_bin(k, bin);
    var range = vec2<u32>(0u);
    if found.count > MANY_ASIDE {
        range = set_aside_sorted(index, wg, k, of_bin, next_shift(known_by(found.digit)));
    } else {
        for (var left = of_bin; left != 0u; left &= left - 1u) {
            lists[aside_ix(wg.y, wg.x, atomicAdd(&wg_count, 1u))] = key_of(k, firstTrailingBit(left));
        }
    }
    let below = sums_of(ones(k.low < bin.first) + ones(k.high < bin.first), 0u).x;
    if index == 0u {
        histogram[tile_quad(wg.y, wg.x)] = vec4<u32>(below, atomicLoad(&wg_count), range);
        if wg.x == 0u {
            write_row_info(wg.y, s, vec4<u32>(found.digit, found.rank, found.count, num_tiles));
        }
    }
}

fn emit_long(wg: vec3<u32>, num_tiles: u32, index: u32) {
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    let info = load_info(wg.y);
    var s = row_of_info(info);
    clear_sums(index);
    var before: vec2<u32>;
    if FROM_SORTED {
        workgroupBarrier();
        before = before_by_counts(index, wg);
    } else {
        let asides = asides_of(index, wg.y, num_tiles);
        let threshold = threshold_aside(index, wg.y, num_tiles, asides, info.threshold);
        s.threshold = threshold.key;
        s.num_ties = threshold.rank + 1u;
        before = before_tile(wg, threshold);
    }
    let k = mask_keys(raw, s.row.len, eight);
    _ = emit_tile(index, wg.y, s, k, wg.x * TILE, before.x, before.y);

    if wg.x == 0u && !FROM_SORTED {
        clear_histogram(index, wg.y);
    }
}

// For the next call. Nothing reads these counts in this dispatch.
fn clear_histogram(index: u32, local_row: u32) {
    for (var quad = index; quad < NUM_BINS / 4u; quad += WG_SIZE) {
        histogram[row_quad(local_row) + quad] = vec4<u32>(0u);
    }
    if index == 0u {
        histogram[row_quad(local_row) + COUNTS_IX] = vec4<u32>(0u);
    }
}

fn settle_row(local_row: u32, index: u32) {
    let info = row_infos[params.first_info + local_row];
    let num_tiles = info.threshold.w;
    let asides = asides_of(index, local_row, num_tiles);
    let threshold = threshold_aside(index, local_row, num_tiles, asides, info.threshold);
    storageBarrier(); // every invocation has read the counts
    if index < num_tiles {
        var a = asides_from(index, WG_SIZE, 0u, 1u, local_row, num_tiles);
        if threshold.digit != UNSORTED {
            a = with_digit(a, threshold.digit, local_row, num_tiles);
        }
        for (; a.tile < num_tiles; a = next_tile(a, threshold.digit, local_row, num_tiles)) {
            let sums = sums_aside(a, local_row, threshold.key);
            histogram[tile_quad(local_row, a.tile)] = vec4<u32>(sums, 0u, 0u);
        }
    }
    clear_histogram(index, local_row);
    if index == 0u {
        row_infos[params.first_info + local_row].threshold = vec4<u32>(threshold.key, threshold.rank + 1u, 0u, 0u);
    }
}

fn before_by_counts(index: u32, wg: vec3<u32>) -> vec2<u32> {
    var sums = vec2<u32>(0u);
    for (var tile = index; tile < wg.x; tile += WG_SIZE) {
        sums += tile_counts(wg.y, tile);
    }
    return sums_of(sums.x, sums.y);
}
