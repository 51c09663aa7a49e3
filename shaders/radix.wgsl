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
var<workgroup> wg_row: SelectRow;

struct Found {
    digit: u32, // bin in which the wanted rank falls
    rank: u32,  // rank among the bin's keys
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
                wg_found = Found(b, rank - running);
            }
            running += count;
        }
    }
    workgroupBarrier();
    let found = wg_found;
    workgroupBarrier();
    return found;
}

fn radix_row_of(local_row: u32, index: u32) {
    if index == 0u {
        wg_row = select_row_of(local_row);
    }
    var s = workgroupUniformLoad(&wg_row);
    let q0 = load_quad(local_row, s.row.len, index);
    let q1 = load_quad(local_row, s.row.len, index + WG_SIZE);
    let zeros = ones(q0 == vec4<u32>(0u)) + ones(q1 == vec4<u32>(0u));
    let num_protected = exclusive_scan(index, zeros).total;
    s.budget = row_budget(s.entry, s.row, num_protected);
    let found = row_threshold(index, q0, q1, max(s.budget, 1u) - 1u);
    emit_row(index, local_row, s, q0, found.digit, found.rank + 1u, num_protected);
}

// The invocation's first quad of a tile, loaded before anything else is known so that its latency is hidden.
fn first_of(wg: vec3<u32>, index: u32, len: u32) -> vec4<u32> {
    return load_quad(wg.y, len, wg.x * (TILE / 4u) + index);
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
        for (var i = 0u; i < 4u; i++) {
            if keys[i] != PAD_KEY {
                atomicAdd(&bins[first_digit(keys[i], params.digit_shift, params.digit_base)], 1u);
            }
        }
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
    if params.from_sorted == 0u {
        for (var b = index; b < NUM_BINS; b += WG_SIZE) {
            atomicStore(&bins[b], atomicLoad(&histogram[base + b]));
        }
    }
    if index == 0u {
        wg_row = select_row_of(wg.y);
        wg_found = Found(0u, 0u); // an empty row finds nothing
        if params.from_sorted == 0u {
            wg_row.num_protected = atomicLoad(&histogram[base + PROTECTED_COUNT_IX]);
            wg_row.budget = row_budget(wg_row.entry, wg_row.row, wg_row.num_protected);
        } else {
            wg_row.threshold = row_infos[params.first_info + wg.y].threshold;
        }
        atomicStore(&wg_count, 0u);
    }
    let s = workgroupUniformLoad(&wg_row);
    var next = first_of(wg, index, s.row.len);
    var bin = 0u;
    if params.from_sorted == 0u {
        let found = narrow(index, NUM_BINS, max(s.budget, 1u) - 1u);
        bin = found.digit;
        if wg.x == 0u && index == 0u {
            row_infos[params.first_info + wg.y].budget = s.budget;
            row_infos[params.first_info + wg.y].num_protected = s.num_protected;
            row_infos[params.first_info + wg.y].bin = bin;
            row_infos[params.first_info + wg.y].bin_rank = found.rank;
        }
    }
    let first_quad = wg.x * (TILE / 4u);
    let aside = wg.y * params.lists_stride + params.aside_offset + wg.x * TILE;
    var counts = 0u;
    for (var q = index; q < TILE / 4u; q += WG_SIZE) {
        let keys = next;
        next = load_quad(wg.y, s.row.len, first_quad + q + WG_SIZE);
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

// Adds the digits of the keys set aside in all tiles, of those that share the digits found before.
fn count_aside(index: u32, local_row: u32, num_tiles: u32, low_mask: u32, above: u32, found: u32, shift: u32) {
    for (var t = index / ASIDE_GROUP; t < num_tiles; t += WG_SIZE / ASIDE_GROUP) {
        let num = atomicLoad(&histogram[tile_counts_ix(local_row, t) + 1u]);
        for (var c = index % ASIDE_GROUP; c < num; c += ASIDE_GROUP) {
            let key = lists[local_row * params.lists_stride + params.aside_offset + t * TILE + c] & low_mask;
            if ((key ^ found) & above) == 0u {
                atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
            }
        }
    }
}

// The threshold among the keys set aside, eight bits at a time.
fn threshold_aside(index: u32, s: SelectRow, local_row: u32, num_tiles: u32) -> Found {
    // In the first and last bin any bit may differ.
    let is_end = s.bin == 0u || s.bin == NUM_BINS - 1u;
    let num_bits = select(params.digit_shift, 32u, is_end);
    let low_mask = select((1u << (num_bits & 31u)) - 1u, 0xffffffffu, is_end);
    var found = 0u;
    var above = 0u;
    var rank = s.bin_rank;
    for (var left = num_bits; left > 0u;) {
        let shift = max(left, 8u) - 8u;
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        count_aside(index, local_row, num_tiles, low_mask, above, found, shift);
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        // Bits that an earlier digit has found already are the same in all keys counted.
        found |= next.digit << shift;
        rank = next.rank;
        above |= (SMALL_BINS - 1u) << shift;
        left = shift;
    }
    return Found(select(((s.bin + params.digit_base) << params.digit_shift) | found, found, is_end), rank);
}

fn emit_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        let info = row_infos[params.first_info + wg.y];
        wg_row = select_row_of(wg.y);
        wg_row.budget = info.budget;
        wg_row.num_protected = info.num_protected;
        wg_row.bin = info.bin;
        wg_row.bin_rank = info.bin_rank;
        wg_row.threshold = info.threshold;
        wg_row.num_ties = info.num_ties;
    }
    var s = workgroupUniformLoad(&wg_row);
    let len = select(0u, s.row.len, s.row.active_row);
    var next = first_of(wg, index, len);
    let num_tiles = (s.row.len + TILE - 1u) / TILE;
    if params.from_sorted == 0u {
        let found = threshold_aside(index, s, wg.y, num_tiles);
        s.threshold = found.digit;
        s.num_ties = found.rank + 1u;
        if wg.x == 0u && index == 0u {
            write_row_info(wg.y, s, s.threshold, s.num_ties, s.num_protected);
        }
    }
    let before = before_tile(wg, index, s.threshold);
    emit_tile(wg, index, s, next, before);

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
                let key = lists[wg.y * params.lists_stride + params.aside_offset + t * TILE + c];
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
