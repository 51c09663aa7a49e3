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
//!   the keys below it in each tile and sets the keys of the bin aside, by tiles. `emit` finds the threshold among them,
//!   each workgroup for itself, sums what lies in the tiles before its own and emits. Many workgroups would read what is
//!   aside many times: there `settle` leaves the threshold and each tile's counts as those of sorted rows. Of a bin of many
//!   keys each tile sorts its own by their next digit and leaves where the keys of each end, so that only those of the
//!   threshold's are read.
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
// Keys set aside that are ranked against each other rather than narrowed further.
const FEW_ASIDE: u32 = 64u;
// Keys of a bin up to which tiles leave them unsorted. See benches/record.
const MANY_ASIDE: u32 = 4096u;
// Two ends a word.
const END_WORDS: u32 = SMALL_BINS / 2u;
// In place of a digit: keys aside are in no order, or they are equal.
const UNSORTED: u32 = 0xffffffffu;
const EQUAL: u32 = 0xfffffffeu;
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

// Where a tile's key aside is.
fn aside_ix(local_row: u32, tile: u32, place: u32) -> u32 {
    return local_row * params.lists_stride + params.aside_offset + tile * TILE + place;
}

// Where a tile's ends are.
fn ends_ix(local_row: u32, tile: u32) -> u32 {
    return local_row * params.lists_stride + params.ends_offset + tile * END_WORDS;
}

// One past a tile's keys aside of a digit and of those before it.
fn end_of_digit(local_row: u32, tile: u32, digit: u32) -> u32 {
    let word = lists[ends_ix(local_row, tile) + digit / 2u];
    return min((word >> (digit % 2u * 16u)) & 0xffffu, TILE);
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

// The least of the keys aside and the greatest, in words that are free for it.
fn clear_range() {
    atomicStore(&wg_threshold, 0xffffffffu);
    atomicStore(&wg_tie, 0u);
}

fn add_to_range(least: u32, greatest: u32) {
    atomicMin(&wg_threshold, least);
    atomicMax(&wg_tie, greatest);
}

// Sets a tile's keys aside in the order of the digit from `shift` on, and leaves the end of each digit. The keys of a digit
// are in no order. Gives the least key and the greatest.
fn set_aside_sorted(index: u32, wg: vec3<u32>, k: Keys, of_bin: u32, shift: u32) -> vec2<u32> {
    clear_bins(index, SMALL_BINS);
    if index == 0u {
        clear_range();
    }
    workgroupBarrier();
    var least = 0xffffffffu;
    var greatest = 0u;
    for (var left = of_bin; left != 0u; left &= left - 1u) {
        let key = key_of(k, firstTrailingBit(left));
        atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
        least = min(least, key);
        greatest = max(greatest, key);
    }
    add_to_range(least, greatest);
    workgroupBarrier();
    var count = 0u;
    if index < SMALL_BINS {
        count = atomicLoad(&bins[index]);
    }
    let scanned = exclusive_scan(index, count);
    if index < SMALL_BINS {
        atomicStore(&bins[index], scanned.before);
    }
    if index == 0u {
        atomicStore(&wg_count, scanned.total);
    }
    workgroupBarrier();
    for (var left = of_bin; left != 0u; left &= left - 1u) {
        let key = key_of(k, firstTrailingBit(left));
        let place = atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
        lists[aside_ix(wg.y, wg.x, place)] = key;
    }
    workgroupBarrier();
    if index < END_WORDS {
        let ends = atomicLoad(&bins[2u * index]) | (atomicLoad(&bins[2u * index + 1u]) << 16u);
        lists[ends_ix(wg.y, wg.x) + index] = ends;
    }
    return vec2<u32>(atomicLoad(&wg_threshold), atomicLoad(&wg_tie));
}

// The tiles of an invocation, and of each every share'th key aside from `part` on.
struct Asides {
    tile: u32,
    step: u32,
    part: u32,
    share: u32,
    below: u32, // the tile's keys below those that may be the threshold
    equal: u32, // keys that are it
    first: u32, // those that may be it, among the tile's keys aside
    end: u32,
}

fn asides_of(index: u32, local_row: u32, num_tiles: u32) -> Asides {
    let log_tiles = min(32u - countLeadingZeros(num_tiles - 1u), firstTrailingBit(WG_SIZE));
    let log_share = firstTrailingBit(WG_SIZE) - log_tiles;
    let share = 1u << log_share;
    return asides_from(index >> log_share, 1u << log_tiles, index & (share - 1u), share, local_row, num_tiles);
}

fn asides_from(tile: u32, step: u32, part: u32, share: u32, local_row: u32, num_tiles: u32) -> Asides {
    return with_counts(Asides(tile, step, part, share, 0u, 0u, 0u, 0u), local_row, num_tiles);
}

fn with_counts(asides: Asides, local_row: u32, num_tiles: u32) -> Asides {
    var a = asides;
    let counts = tile_counts(local_row, min(a.tile, num_tiles - 1u));
    a.below = counts.x;
    a.equal = 0u;
    a.first = 0u;
    a.end = select(0u, counts.y, a.tile < num_tiles);
    return a;
}

// Of keys that are sorted by a digit only those of it.
fn with_digit(asides: Asides, digit: u32, local_row: u32, num_tiles: u32) -> Asides {
    var a = asides;
    if digit == EQUAL {
        a.equal = a.end;
        a.end = 0u;
        return a;
    }
    let tile = min(a.tile, num_tiles - 1u);
    if digit > 0u {
        a.first = min(end_of_digit(local_row, tile, digit - 1u), a.end);
    }
    a.below += a.first;
    a.end = min(end_of_digit(local_row, tile, digit), a.end);
    return a;
}

fn next_tile(asides: Asides, digit: u32, local_row: u32, num_tiles: u32) -> Asides {
    var a = asides;
    a.tile += a.step;
    if !MORE_TILES {
        a.tile = num_tiles;
    } else if a.tile < num_tiles {
        a = with_counts(a, local_row, num_tiles);
        if digit != UNSORTED {
            a = with_digit(a, digit, local_row, num_tiles);
        }
    }
    return a;
}

// Two ends of a tile, of no keys beyond the last.
fn ends_of(local_row: u32, tile: u32, num_tiles: u32, word: u32) -> vec2<u32> {
    let ends = lists[ends_ix(local_row, min(tile, num_tiles - 1u)) + word];
    return select(vec2<u32>(0u), vec2<u32>(ends & 0xffffu, ends >> 16u), tile < num_tiles);
}

// The digit of a rank among sorted keys aside; if all are equal the key, and a count of 0. Ends at a barrier.
fn digit_aside(index: u32, local_row: u32, num_tiles: u32, rank: u32) -> Found {
    clear_bins(index, SMALL_BINS);
    if index == 0u {
        clear_range();
    }
    workgroupBarrier();
    let word = index % END_WORDS;
    let step = WG_SIZE / END_WORDS;
    var ends = vec2<u32>(0u);
    for (var tile = index / END_WORDS; tile < num_tiles; tile += 4u * step) {
        let a = ends_of(local_row, tile, num_tiles, word);
        let b = ends_of(local_row, tile + step, num_tiles, word);
        let c = ends_of(local_row, tile + 2u * step, num_tiles, word);
        let d = ends_of(local_row, tile + 3u * step, num_tiles, word);
        ends += (a + b) + (c + d);
    }
    atomicAdd(&bins[2u * word], ends.x);
    atomicAdd(&bins[2u * word + 1u], ends.y);
    for (var tile = index; tile < num_tiles; tile += WG_SIZE) {
        let range = histogram[tile_quad(local_row, tile)].zw;
        add_to_range(range.x, range.y);
    }
    workgroupBarrier();
    let least = atomicLoad(&wg_threshold);
    if least == atomicLoad(&wg_tie) {
        if index == 0u {
            wg_found = Found(least, rank, 0u);
        }
    } else if index < SMALL_BINS {
        var first = 0u;
        if index > 0u {
            first = atomicLoad(&bins[index - 1u]);
        }
        let end = atomicLoad(&bins[index]);
        if rank >= first && rank < end {
            wg_found = Found(index, rank - first, end - first);
        }
    }
    return workgroupUniformLoad(&wg_found);
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

struct Threshold {
    key: u32,
    rank: u32,  // among the keys equal to it
    digit: u32, // that the keys aside were searched for, or UNSORTED or EQUAL
    asides: Asides,
}

// The threshold among the keys set aside, of a bin as `collect` has left it: digit by digit while they are many, a few are
// ranked. Ends at a barrier.
fn threshold_aside(index: u32, local_row: u32, num_tiles: u32, asides: Asides, bin: vec4<u32>) -> Threshold {
    if index == 0u {
        wg_found = Found(bin.x, bin.y, bin.z);
        atomicStore(&wg_count, 0u);
    }
    var found = workgroupUniformLoad(&wg_found);
    var known = known_by(found.digit);
    var t = Threshold(0u, 0u, UNSORTED, asides);
    if found.count > MANY_ASIDE {
        found = digit_aside(index, local_row, num_tiles, found.rank);
        t.digit = select(found.digit, EQUAL, found.count == 0u);
        t.asides = with_digit(asides, t.digit, local_row, num_tiles);
        if found.count == 0u {
            t.key = found.digit;
            t.rank = found.rank;
            return t;
        }
        known = known_with(known, found.digit, next_shift(known));
    }
    for (var round = 0u; round < 4u && found.count > FEW_ASIDE && known.shift > 0u; round++) {
        let shift = next_shift(known);
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        for (var a = t.asides; a.tile < num_tiles; a = next_tile(a, t.digit, local_row, num_tiles)) {
            for (var i = a.first + a.part; i < a.end; i += a.share) {
                add_digit(lists[aside_ix(local_row, a.tile, i)], known, shift);
            }
        }
        workgroupBarrier();
        found = narrow(index, SMALL_BINS, found.rank, false);
        known = known_with(known, found.digit, shift);
    }
    if known.shift == 0u {
        t.key = known.prefix;
        t.rank = found.rank;
        return t;
    }
    for (var a = t.asides; a.tile < num_tiles; a = next_tile(a, t.digit, local_row, num_tiles)) {
        for (var i = a.first + a.part; i < a.end; i += a.share) {
            let key = lists[aside_ix(local_row, a.tile, i)];
            if is_known(key, known) {
                atomicStore(&bins[atomicAdd(&wg_count, 1u)], key);
            }
        }
    }
    workgroupBarrier();
    let few = rank_few(index, found.count, found.rank);
    t.key = few.digit;
    t.rank = few.rank;
    return t;
}

// An invocation's share of its tile's keys below the threshold and equal to it.
fn sums_aside(a: Asides, local_row: u32, threshold: u32) -> vec2<u32> {
    var sums = select(vec2<u32>(0u), vec2<u32>(a.below, a.equal), a.part == 0u);
    for (var i = a.first + a.part; i < a.end; i += a.share) {
        let key = lists[aside_ix(local_row, a.tile, i)];
        sums += vec2<u32>(u32(key < threshold), u32(key == threshold));
    }
    return sums;
}

// Keys below and equal to the threshold in the tiles before this one.
fn before_tile(wg: vec3<u32>, t: Threshold) -> vec2<u32> {
    var sums = vec2<u32>(0u);
    for (var a = t.asides; a.tile < wg.x; a = next_tile(a, t.digit, wg.y, wg.x)) {
        sums += sums_aside(a, wg.y, t.key);
    }
    return sums_of(sums.x, sums.y);
}

fn before_by_counts(index: u32, wg: vec3<u32>) -> vec2<u32> {
    var sums = vec2<u32>(0u);
    for (var tile = index; tile < wg.x; tile += WG_SIZE) {
        sums += tile_counts(wg.y, tile);
    }
    return sums_of(sums.x, sums.y);
}
