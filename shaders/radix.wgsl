//! radix: the threshold of each row by histograms of its order keys' digits, then the kept slots.
//! Source: histogram selection as in J. Zhang et al., "Parallel Top-K Algorithms on GPU", SC '23; collecting the bin of
//!   the threshold a tile at a time and the deterministic emission are our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl
//! Entry points: radix_row · dispatch (1, num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens
//!   count_digits, collect, emit · dispatch (ceil(max_len / TILE), num_rows, 1) · none | subgroups: rows of any length
//! Overrides: WG_SIZE = 256; TILE = 4096, a multiple of 4 * WG_SIZE, at most 65532
//! Workgroup bytes: 8192 + 8 * WG_SIZE + 128
//! Algorithm: radix_row keeps a row's keys in registers and narrows the threshold digit by digit.
//!   Long rows: the score stage has counted first digits. `collect` finds the bin in which the threshold lies and, a
//!   workgroup a tile, counts the keys below it and sets its keys (a hundredth of the row) aside. `emit` finds the
//!   threshold among those, each workgroup for itself, sums the counts of the tiles before its own and emits.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run; the order in which keys
//!   are set aside is not, but they are only counted. `emit` leaves the histogram zero for the next call.
//!   A tile counts at most 65535 keys, so two counts share a word. Any distribution of keys is exact; one that puts
//!   most keys into one bin only makes `emit` read more.

override TILE: u32 = 4096u;

const SMALL_BINS: u32 = 256u;
const ASIDE_GROUP: u32 = 32u; // invocations that share the keys set aside by a tile

var<workgroup> bins: array<atomic<u32>, NUM_BINS>;
var<workgroup> wg_found: Found;
var<workgroup> wg_count: atomic<u32>;
var<workgroup> wg_threshold: atomic<u32>;
var<workgroup> wg_tie: atomic<u32>;
var<workgroup> wg_row: SelectRow;

struct Found {
    digit: u32, // bin in which the wanted rank falls, or the threshold itself
    rank: u32,  // rank among the bin's keys
    count: u32, // keys in the bin
}

fn clear_bins(index: u32, num_bins: u32) {
    for (var b = index; b < num_bins; b += WG_SIZE) {
        atomicStore(&bins[b], 0u);
    }
}

// Finds the bin of a rank among the workgroup's bins. The caller has passed a barrier; ends at one.
fn narrow(index: u32, num_bins: u32, rank: u32) -> Found {
    let per = max(num_bins / WG_SIZE, 1u);
    var sum = 0u;
    for (var b = index * per; b < min((index + 1u) * per, num_bins); b++) {
        sum += atomicLoad(&bins[b]);
    }
    var running = exclusive_scan(index, sum).before;
    if rank >= running && rank - running < sum {
        for (var b = index * per; b < (index + 1u) * per; b++) {
            let count = atomicLoad(&bins[b]);
            if rank >= running && rank - running < count {
                wg_found = Found(b, rank - running, count);
            }
            running += count;
        }
    }
    workgroupBarrier();
    let found = wg_found;
    workgroupBarrier();
    return found;
}

// The threshold among num keys in `bins`, all of one first digit. Starts and ends at a barrier.
fn rank_few(index: u32, num: u32, rank: u32) -> Found {
    if index < num {
        let key = atomicLoad(&bins[index]);
        var below = 0u;
        var equal = 0u;
        for (var i = 0u; i < num; i++) {
            let other = atomicLoad(&bins[i]);
            below += u32(other < key);
            equal += u32(other == key);
        }
        if rank >= below && rank - below < equal {
            // Invocations with the same key store the same.
            atomicStore(&wg_threshold, key);
            atomicStore(&wg_tie, rank - below);
        }
    }
    workgroupBarrier();
    return Found(atomicLoad(&wg_threshold), atomicLoad(&wg_tie), 0u);
}

// Keys of a bin that are ranked against each other rather than narrowed further.
const FEW: u32 = 128u;

fn radix_row_of(local_row: u32, index: u32) {
    let raw0 = load_raw(local_row, index);
    let raw1 = load_raw(local_row, index + WG_SIZE);
    clear_bins(index, NUM_BINS);
    if index == 0u {
        wg_row = select_row_of(local_row);
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
        atomicStore(&wg_count, 0u);
    }
    var s = workgroupUniformLoad(&wg_row);
    let q0 = mask_quad(raw0, s.row.len, index);
    let q1 = mask_quad(raw1, s.row.len, index + WG_SIZE);
    add_first_digits(q0);
    add_first_digits(q1);
    let zeros = ones(q0 == vec4<u32>(0u)) + ones(q1 == vec4<u32>(0u));
    if zeros > 0u {
        atomicAdd(&wg_count, zeros);
    }
    workgroupBarrier();
    let num_protected = atomicLoad(&wg_count);
    s.budget = row_budget(s.entry, s.row, num_protected);
    var found = narrow(index, NUM_BINS, max(s.budget, 1u) - 1u);
    let bin = found.digit;
    if found.count <= FEW {
        if index == 0u {
            atomicStore(&wg_count, 0u);
        }
        workgroupBarrier();
        set_aside(q0, bin);
        set_aside(q1, bin);
        workgroupBarrier();
        found = rank_few(index, found.count, found.rank);
    } else {
        found = narrow_row(index, q0, q1, bin, found.rank);
    }
    emit_row(index, local_row, s, q0, found.digit, found.rank + 1u, num_protected);
}

fn add_first_digits(keys: vec4<u32>) {
    for (var i = 0u; i < 4u; i++) {
        if keys[i] != PAD_KEY {
            atomicAdd(&bins[first_digit(keys[i], params.digit_shift, params.digit_base)], 1u);
        }
    }
}

// Puts the keys of a bin into `bins`, whose counts are no longer needed. Their order does not matter.
fn set_aside(keys: vec4<u32>, bin: u32) {
    for (var i = 0u; i < 4u; i++) {
        if keys[i] != PAD_KEY && first_digit(keys[i], params.digit_shift, params.digit_base) == bin {
            atomicStore(&bins[atomicAdd(&wg_count, 1u)], keys[i]);
        }
    }
}

// The threshold among the many keys of a bin that the row's invocations hold, eight bits at a time.
fn narrow_row(index: u32, q0: vec4<u32>, q1: vec4<u32>, bin: u32, wanted: u32) -> Found {
    var found = 0u;
    var above = 0u;
    var rank = wanted;
    for (var left = 4u; left > 0u; left--) {
        let shift = (left - 1u) * 8u;
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        add_digits(q0, bin, found, above, shift);
        add_digits(q1, bin, found, above, shift);
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        found |= next.digit << shift;
        rank = next.rank;
        above |= (SMALL_BINS - 1u) << shift;
    }
    return Found(found, rank, 0u);
}

fn add_digits(keys: vec4<u32>, bin: u32, found: u32, above: u32, shift: u32) {
    for (var i = 0u; i < 4u; i++) {
        let key = keys[i];
        let in_bin = key != PAD_KEY && first_digit(key, params.digit_shift, params.digit_base) == bin;
        if in_bin && ((key ^ found) & above) == 0u {
            atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
        }
    }
}

// Counts first digits where the score stage has not: its keys may be the caller's.
fn count_digits_of(wg: vec3<u32>, index: u32) {
    clear_bins(index, NUM_BINS);
    if index == 0u {
        wg_row = select_row_of(wg.y);
        atomicStore(&wg_count, 0u);
    }
    let len = workgroupUniformLoad(&wg_row).row.len;
    var num_zero = 0u;
    for (var q = index; q < TILE / 4u; q += WG_SIZE) {
        let keys = load_quad(wg.y, len, wg.x * (TILE / 4u) + q);
        num_zero += ones(keys == vec4<u32>(0u));
        add_first_digits(keys);
    }
    if num_zero > 0u {
        atomicAdd(&wg_count, num_zero);
    }
    workgroupBarrier();
    let base = wg.y * params.histogram_stride;
    for (var b = index; b < NUM_BINS; b += WG_SIZE) {
        let count = atomicLoad(&bins[b]);
        if count > 0u {
            atomicAdd(&histogram[base + b], count);
        }
    }
    if index == 0u && atomicLoad(&wg_count) > 0u {
        atomicAdd(&histogram[base + PROTECTED_COUNT_IX], atomicLoad(&wg_count));
    }
}

fn tile_counts_ix(local_row: u32, tile: u32) -> u32 {
    return local_row * params.histogram_stride + params.tile_counts_base + 2u * tile;
}

fn collect_of(wg: vec3<u32>, index: u32) {
    let base = wg.y * params.histogram_stride;
    let first_quad = wg.x * (TILE / 4u);
    let raw = load_raw(wg.y, first_quad + index);
    if params.from_sorted == 0u {
        for (var b = index; b < NUM_BINS; b += WG_SIZE) {
            atomicStore(&bins[b], atomicLoad(&histogram[base + b]));
        }
    }
    if index == 0u {
        let num_protected = atomicLoad(&histogram[base + select(PROTECTED_COUNT_IX, 0u, params.from_sorted == 1u)]);
        wg_row = select_row_of(wg.y);
        wg_row.num_protected = num_protected;
        wg_row.budget = row_budget(wg_row.entry, wg_row.row, num_protected);
        wg_row.threshold = row_infos[params.first_info + wg.y].threshold;
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
        atomicStore(&wg_count, 0u);
    }
    let s = workgroupUniformLoad(&wg_row);
    var bin = 0u;
    if params.from_sorted == 0u {
        let found = narrow(index, NUM_BINS, max(s.budget, 1u) - 1u);
        bin = found.digit;
        if wg.x == 0u && index == 0u {
            row_infos[params.first_info + wg.y].budget = s.budget;
            row_infos[params.first_info + wg.y].num_protected = s.num_protected;
            row_infos[params.first_info + wg.y].bin = bin;
            row_infos[params.first_info + wg.y].bin_rank = found.rank;
            row_infos[params.first_info + wg.y].bin_count = found.count;
        }
    }
    let aside = aside_ix(wg.y, wg.x);
    var keys = mask_quad(raw, s.row.len, first_quad + index);
    var counts = 0u;
    for (var q = index; q < TILE / 4u; q += WG_SIZE) {
        if q != index {
            keys = load_quad(wg.y, s.row.len, first_quad + q);
        }
        if params.from_sorted == 1u {
            counts += count_quad(keys, s.threshold);
            continue;
        }
        for (var i = 0u; i < 4u; i++) {
            let digit = first_digit(keys[i], params.digit_shift, params.digit_base);
            counts += u32(digit < bin);
            if digit == bin && keys[i] != PAD_KEY {
                lists[aside + atomicAdd(&wg_count, 1u)] = keys[i];
            }
        }
    }
    let total = exclusive_scan(index, counts).total;
    workgroupBarrier();
    if index == 0u {
        let ix = tile_counts_ix(wg.y, wg.x);
        atomicStore(&histogram[ix], total & 0xffffu);
        atomicStore(&histogram[ix + 1u], select(atomicLoad(&wg_count), total >> 16u, params.from_sorted == 1u));
    }
}

// Where keys are held in `bins`, after the bins of one digit.
const HELD_IX: u32 = SMALL_BINS;
const MAX_HELD: u32 = NUM_BINS - SMALL_BINS;

// The keys set aside that share the digits found before: held in workgroup memory, or, where they are too many, read again.
fn add_aside(index: u32, s: SelectRow, local_row: u32, found: Found, shift: u32) {
    if s.bin_count <= MAX_HELD {
        for (var i = index; i < s.bin_count; i += WG_SIZE) {
            add_digit(atomicLoad(&bins[HELD_IX + i]), found, shift);
        }
        return;
    }
    let num_tiles = (s.row.len + TILE - 1u) / TILE;
    for (var t = index / ASIDE_GROUP; t < num_tiles; t += WG_SIZE / ASIDE_GROUP) {
        let num = atomicLoad(&histogram[tile_counts_ix(local_row, t) + 1u]);
        for (var c = index % ASIDE_GROUP; c < num; c += ASIDE_GROUP) {
            add_digit(lists[aside_ix(local_row, t) + c], found, shift);
        }
    }
}

// `rank` of found is the mask of the digits above.
fn add_digit(key: u32, found: Found, shift: u32) {
    if ((key ^ found.digit) & found.rank) == 0u {
        atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
    }
}

fn aside_ix(local_row: u32, tile: u32) -> u32 {
    return local_row * params.lists_stride + params.aside_offset + tile * TILE;
}

// Copies the keys that all tiles set aside into `bins`, in any order. Ends at a barrier.
fn hold_aside(index: u32, s: SelectRow, local_row: u32, first_ix: u32) {
    let num_tiles = (s.row.len + TILE - 1u) / TILE;
    for (var t = index / ASIDE_GROUP; t < num_tiles; t += WG_SIZE / ASIDE_GROUP) {
        let num = atomicLoad(&histogram[tile_counts_ix(local_row, t) + 1u]);
        for (var c = index % ASIDE_GROUP; c < num; c += ASIDE_GROUP) {
            let ix = first_ix + atomicAdd(&wg_count, 1u);
            atomicStore(&bins[min(ix, NUM_BINS - 1u)], lists[aside_ix(local_row, t) + c]);
        }
    }
    workgroupBarrier();
}

// The threshold among the keys set aside, eight bits at a time; a few are ranked at once.
fn threshold_aside(index: u32, s: SelectRow, local_row: u32) -> Found {
    if s.bin_count <= FEW {
        hold_aside(index, s, local_row, 0u);
        return rank_few(index, s.bin_count, s.bin_rank);
    }
    if s.bin_count <= MAX_HELD {
        hold_aside(index, s, local_row, HELD_IX);
    }
    // Within the window the keys of a bin differ in the bits below the shift; in the first and last bin in any bit.
    let is_end = s.bin == 0u || s.bin == NUM_BINS - 1u;
    let num_bits = select(params.digit_shift, 32u, is_end);
    var threshold = select((s.bin + params.digit_base) << params.digit_shift, 0u, is_end);
    var above = 0u;
    var rank = s.bin_rank;
    for (var left = num_bits; left > 0u;) {
        let shift = max(left, 8u) - 8u;
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        add_aside(index, s, local_row, Found(threshold, above, 0u), shift);
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        // Bits of the digit that are known already are the same in all keys counted.
        threshold = (threshold & ~((SMALL_BINS - 1u) << shift)) | (next.digit << shift);
        rank = next.rank;
        above |= (SMALL_BINS - 1u) << shift;
        left = shift;
    }
    return Found(threshold, rank, 0u);
}

fn emit_of(wg: vec3<u32>, index: u32) {
    let first_quad = wg.x * (TILE / 4u);
    let raw = load_raw(wg.y, first_quad + index);
    if index == 0u {
        let info = row_infos[params.first_info + wg.y];
        wg_row = select_row_of(wg.y);
        wg_row.budget = info.budget;
        wg_row.num_protected = info.num_protected;
        wg_row.bin = info.bin;
        wg_row.bin_rank = info.bin_rank;
        wg_row.bin_count = info.bin_count;
        atomicStore(&wg_count, 0u);
        wg_row.threshold = info.threshold;
        wg_row.num_ties = info.num_ties;
        wg_found = Found(0u, 0u, 0u);
    }
    var s = workgroupUniformLoad(&wg_row);
    let first = mask_quad(raw, select(0u, s.row.len, s.row.active_row), first_quad + index);
    if params.from_sorted == 0u {
        let found = threshold_aside(index, s, wg.y);
        s.threshold = found.digit;
        s.num_ties = found.rank + 1u;
        if wg.x == 0u && index == 0u {
            write_row_info(wg.y, s, s.threshold, s.num_ties, s.num_protected);
        }
    }
    emit_tile(wg, index, s, first, before_tile(wg, index, s.threshold));

    // Nothing reads the bins in this dispatch.
    if wg.x == 0u && params.from_sorted == 0u {
        for (var b = index; b <= PROTECTED_COUNT_IX; b += WG_SIZE) {
            atomicStore(&histogram[wg.y * params.histogram_stride + b], 0u);
        }
    }
}

// Keys below and equal to the threshold in the tiles before this one.
fn before_tile(wg: vec3<u32>, index: u32, threshold: u32) -> vec2<u32> {
    var below = 0u;
    var equal = 0u;
    for (var t = index / ASIDE_GROUP; t < wg.x; t += WG_SIZE / ASIDE_GROUP) {
        let ix = tile_counts_ix(wg.y, t);
        let num = atomicLoad(&histogram[ix + 1u]);
        if index % ASIDE_GROUP == 0u {
            below += atomicLoad(&histogram[ix]);
            equal += select(0u, num, params.from_sorted == 1u);
        }
        if params.from_sorted == 0u {
            for (var c = index % ASIDE_GROUP; c < num; c += ASIDE_GROUP) {
                let key = lists[aside_ix(wg.y, t) + c];
                below += u32(key < threshold);
                equal += u32(key == threshold);
            }
        }
    }
    let below_total = exclusive_scan(index, below).total;
    workgroupBarrier();
    let equal_total = exclusive_scan(index, equal).total;
    workgroupBarrier();
    return vec2<u32>(below_total, equal_total);
}

fn emit_tile(wg: vec3<u32>, index: u32, s: SelectRow, first: vec4<u32>, before: vec2<u32>) {
    let first_quad = wg.x * (TILE / 4u);
    let len = select(0u, s.row.len, s.row.active_row);
    var next = first;
    var below = before.x;
    var equal = before.y;
    for (var base = 0u; base < TILE / 4u; base += WG_SIZE) {
        let quad = first_quad + base + index;
        let keys = next;
        next = load_quad(wg.y, len, quad + WG_SIZE);
        let scanned = exclusive_scan(index, count_quad(keys, s.threshold));
        if s.row.active_row {
            let at = vec2<u32>(below + (scanned.before & 0xffffu), equal + (scanned.before >> 16u));
            emit_quad(wg.y, s, s.threshold, s.num_ties, quad, keys, at.x, at.y);
        }
        below += scanned.total & 0xffffu;
        equal += scanned.total >> 16u;
        workgroupBarrier(); // between two scans
    }
}
