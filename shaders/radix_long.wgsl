//! radix_long: the kept slots of rows of any length, a workgroup to a tile, from the histogram of their first digits or
//!   from the threshold of sorted rows.
//! Source: histogram selection as in J. Zhang et al., "Parallel Top-K Algorithms on GPU", SC '23; setting aside the bin of
//!   the threshold and the deterministic emission are our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl, and
//!   6 histogram read_write vec4<u32> [row, histogram_stride / 4]: counts of first digits, a quad of other counts, and a
//!     quad for each tile: its keys below the bin, keys of the bin (of sorted rows, keys below and equal to the threshold),
//!     and of many keys of the bin the least and the greatest
//! Entry points: collect, emit · dispatch (ceil(max_len / (8 * WG_SIZE * EACH)), SCOUTS + num_rows, 1) · none | subgroups
//!   settle · dispatch (1, num_rows, 1) · none | subgroups: between them where tiles are many
//! Overrides: WG_SIZE = 256, of settle 256 or 1024; IN_ORDER = false; FROM_SORTED = false;
//!   MORE_TILES = false; SCOUTS = 0, or 1 unless FROM_SORTED: rows of the grid that shared/scout.wgsl speaks of; EACH = 1,
//!   at most 8
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 112 + 16 * EACH
//! Algorithm: the score stage or `count_digits` has counted first digits. `collect` finds the bin of the threshold, counts
//!   the keys below it in each tile and sets the keys of the bin aside, by tiles, as shared/aside.wgsl has it. `emit` finds
//!   the threshold among them, each workgroup for itself, sums what lies in the tiles before its own and emits. Many
//!   workgroups would read what is aside many times: there `settle` leaves the threshold and each tile's counts as those of
//!   sorted rows. Of a bin of many keys tiles leave their own sorted, so that only those of one more digit are read. Where
//!   tiles are more than find room at once, a workgroup takes EACH of a row, and finds bin and threshold once.
//!   What takes time here is instructions that run once, fetched as they come: so rows are read by every invocation,
//!   without a barrier, loops stay rolled, what can be known before is left in RowInfo, and scouts go ahead.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run; the order in which keys
//!   are set aside is not, but they are only counted. `emit` or `settle` leaves the histogram zero for the next call. Any
//!   distribution of keys is exact; only one of many keys which two digits do not tell apart makes many of them be read.

@group(0) @binding(6) var<storage, read_write> histogram: array<vec4<u32>>;

override WG_SIZE: u32 = 256u;
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes
override FROM_SORTED: bool = false; // the threshold is in row_infos already
override SCOUTS: u32 = 0u; // of collect and emit
override EACH: u32 = 1u; // tiles of a row that a workgroup of theirs takes, one after the other
override MORE_TILES: bool = false; // rows may have more tiles than the workgroup invocations

const SLOT_WORDS: u32 = 0u;
const PAIR_WORDS: u32 = 0u;
const BY_TILE: bool = true;
const TILE: u32 = 2048u; // slots: eight an invocation
const COUNTS_IX: u32 = PROTECTED_COUNT_IX / 4u; // a row's quad of protected keys, tiles taken, keys up to the limit, nothing

// Of each tile that a workgroup of collect takes; others use the first alone.
var<workgroup> wg_below: array<atomic<u32>, EACH>;
var<workgroup> wg_equal: array<atomic<u32>, EACH>;
var<workgroup> wg_ranges: array<vec2<u32>, EACH>;

fn clear_sums(index: u32) {
    if index == 0u {
        for (var t = 0u; t < EACH; t++) {
            atomicStore(&wg_below[t], 0u);
            atomicStore(&wg_equal[t], 0u);
            wg_ranges[t] = vec2<u32>(0u);
        }
    }
}

// Sums over the workgroup. What was written before can be read after this.
fn sums_of(below: u32, equal: u32) -> vec2<u32> {
    atomicAdd(&wg_below[0], below);
    atomicAdd(&wg_equal[0], equal);
    workgroupBarrier();
    return vec2<u32>(atomicLoad(&wg_below[0]), atomicLoad(&wg_equal[0]));
}

// Leaves what was counted of tiles.
fn write_sums(index: u32, local_row: u32, first_tile: u32, end_tile: u32) {
    if index == 0u {
        for (var tile = first_tile; tile < end_tile; tile++) {
            let t = tile - first_tile;
            let sums = vec2<u32>(atomicLoad(&wg_below[t]), atomicLoad(&wg_equal[t]));
            histogram[tile_quad(local_row, tile)] = vec4<u32>(sums, wg_ranges[t]);
        }
    }
}

// Tiles of rows of up to max_len tokens, or, where a workgroup has several, some more: none that the capacity does not have.
fn num_tiles_of(grid_width: u32) -> u32 {
    return min(grid_width * EACH, (params.state.capacity + TILE - 1u) / TILE);
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

// Finds the bin of a rank, of which each invocation has eight, and how many keys all have. Ends at a barrier. The bin is the
// same for the workgroup, as browsers would not know were the number in one struct with it.
fn bin_of_rank(index: u32, low: vec4<u32>, high: vec4<u32>, rank: u32, num_keys: ptr<function, u32>) -> Found {
    // Keys up to the end of each of them.
    let a = vec4<u32>(low.x, low.x + low.y, low.x + low.y + low.z, low.x + low.y + low.z + low.w);
    let b = a.w + vec4<u32>(high.x, high.x + high.y, high.x + high.y + high.z, high.x + high.y + high.z + high.w);
    let scanned = exclusive_scan(index, b.w);
    let before = scanned.before;
    if rank >= before && rank - before < b.w {
        let r = vec4<u32>(rank - before);
        let starts = max(select(vec4<u32>(0u), a, a <= r), select(vec4<u32>(0u), b, b <= r));
        let ends = min(select(a, b.wwww, a <= r), select(b, b.wwww, b <= r));
        let start = max(max(starts.x, starts.y), max(starts.z, starts.w));
        let end = min(min(ends.x, ends.y), min(ends.z, ends.w));
        wg_found = Found(index * 8u + ones(a <= r) + ones(b <= r), r.x - start, end - start);
    }
    *num_keys = scanned.total;
    return workgroupUniformLoad(&wg_found);
}

// Counts of tiles whose threshold is known.
fn count_tiles(wg: vec3<u32>, index: u32, first_tile: u32, end_tile: u32) {
    let info = row_infos[params.first_info + wg.y];
    for (var tile = first_tile; tile < end_tile; tile++) {
        let eight = tile * WG_SIZE + index;
        let counts = count_keys(mask_keys(load_raw(wg.y, eight), len_of(info), eight), info.threshold.x);
        atomicAdd(&wg_below[tile - first_tile], counts & 0xffffu);
        atomicAdd(&wg_equal[tile - first_tile], counts >> 16u);
    }
}

// Counts a tile's keys below the threshold's bin, and sets those of the bin aside.
fn set_aside(index: u32, wg: vec3<u32>, tile: u32, k: Keys, found: Found) {
    let t = tile - wg.x * EACH;
    let bin = keys_of_bin(found.digit);
    let of_bin = bits_of_bin(k, bin);
    atomicAdd(&wg_below[t], ones(k.low < bin.first) + ones(k.high < bin.first));
    if found.count > MANY_ASIDE {
        workgroupBarrier(); // the tile before has read its bins
        let shift = next_shift(known_by(found.digit));
        let range = set_aside_sorted(index, vec3<u32>(tile, wg.y, 0u), k, of_bin, shift);
        if index == 0u {
            atomicStore(&wg_equal[t], atomicLoad(&wg_count));
            wg_ranges[t] = range;
        }
        return;
    }
    for (var left = of_bin; left != 0u; left &= left - 1u) {
        lists[aside_ix(wg.y, tile, atomicAdd(&wg_equal[t], 1u))] = key_of(k, firstTrailingBit(left));
    }
}

fn collect_tiles(grid: vec3<u32>, grid_width: u32, index: u32) {
    if is_idle_scout(grid, grid_width) {
        return;
    }
    let wg = behind_scouts(grid);
    let num_tiles = num_tiles_of(grid_width);
    let first_tile = wg.x * EACH;
    let end_tile = select(min(first_tile + EACH, num_tiles), 1u, is_scout(grid));
    clear_sums(index);
    if FROM_SORTED {
        workgroupBarrier();
        count_tiles(wg, index, first_tile, end_tile);
        workgroupBarrier();
        write_sums(index, wg.y, first_tile, end_tile);
        return;
    }
    var next: Keys;
    var low: vec4<u32>;
    var high: vec4<u32>;
    var counts: vec4<u32>;
    var s: SelectRow;
    if !is_scout(grid) {
        next = load_raw(wg.y, first_tile * WG_SIZE + index);
        low = histogram[row_quad(wg.y) + 2u * index];
        high = histogram[row_quad(wg.y) + 2u * index + 1u];
        counts = histogram[row_quad(wg.y) + COUNTS_IX];
        s = select_row_of(wg.y);
        s.row = leave_longer(s.row, num_tiles * TILE);
    }
    s.num_protected = counts.x;
    s.num_within = counts.z;
    s.budget = row_budget(s);
    if index == 0u {
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
    }
    var num_keys = 0u;
    let found = bin_of_rank(index, low, high, max(s.budget, 1u) - 1u, &num_keys);
    if num_keys < s.row.len {
        // It is longer than was said: what has not been counted has no place among the others.
        s.row.active_row = false;
        s.budget = s.row.len;
    }
    // Of an inactive row nothing has been counted, and what its keys hold is not set aside.
    let len = select(0u, s.row.len, s.row.active_row);
    for (var tile = first_tile; tile < end_tile; tile++) {
        let raw = next;
        if tile + 1u < end_tile {
            next = load_raw(wg.y, (tile + 1u) * WG_SIZE + index);
        }
        set_aside(index, wg, tile, mask_keys(raw, len, tile * WG_SIZE + index), found);
    }
    workgroupBarrier();
    if is_scout(grid) {
        return;
    }
    write_sums(index, wg.y, first_tile, end_tile);
    if index == 0u && wg.x == 0u {
        write_row_info(wg.y, s, vec4<u32>(found.digit, found.rank, found.count, num_tiles));
    }
}

fn emit_tiles(grid: vec3<u32>, grid_width: u32, index: u32) {
    if is_idle_scout(grid, grid_width) {
        return;
    }
    let left_out = parts_left_out(grid, grid_width, 2u);
    let wg = behind_scouts(grid);
    let first_tile = wg.x * EACH;
    let end_tile = select(min(first_tile + EACH, num_tiles_of(grid_width)), 1u, is_scout(grid));
    var next: Keys;
    var info: RowInfo;
    if !is_scout(grid) {
        next = load_raw(wg.y, first_tile * WG_SIZE + index);
        info = load_info(wg.y);
    }
    var s = row_of_info(info);
    clear_sums(index);
    var before: vec2<u32>;
    if FROM_SORTED {
        workgroupBarrier();
        before = before_by_counts(index, wg.y, first_tile);
    } else {
        var asides = Asides(0u, 1u, 0u, 1u, 0u, 0u, 0u, 0u);
        // Of scouts a bin of keys to narrow, and one of a key to rank, in no tile.
        var bin = vec4<u32>(0u, 0u, select(1u, FEW_ASIDE + 1u, left_out == 0u), 0u);
        var num_tiles = 0u;
        if !is_scout(grid) {
            bin = info.threshold;
            num_tiles = num_tiles_of(grid_width);
            asides = asides_of(index, wg.y, num_tiles);
        }
        let threshold = threshold_aside(index, wg.y, num_tiles, asides, bin);
        s.threshold = threshold.key;
        s.num_ties = threshold.rank + 1u;
        before = before_tile(wg.y, first_tile, threshold);
    }
    for (var tile = first_tile; tile < end_tile; tile++) {
        let eight = tile * WG_SIZE + index;
        let raw = next;
        if tile + 1u < end_tile {
            next = load_raw(wg.y, eight + WG_SIZE);
        }
        let k = mask_keys(raw, s.row.len, eight);
        let counts = emit_tile(index, wg.y, s, k, tile * TILE, before.x, before.y).total;
        before += vec2<u32>(counts & 0xffffu, counts >> 16u);
    }

    if wg.x == 0u && !FROM_SORTED && !is_scout(grid) {
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

fn before_by_counts(index: u32, local_row: u32, end_tile: u32) -> vec2<u32> {
    var sums = vec2<u32>(0u);
    for (var tile = index; tile < end_tile; tile += WG_SIZE) {
        sums += tile_counts(local_row, tile);
    }
    return sums_of(sums.x, sums.y);
}
