//! radix: the threshold of each row by histograms of 11, 11 and 10 bits of its order keys, then the kept slots.
//! Source: T. Ribizel, H. Anzt, "Parallel selection on GPUs", Parallel Computing 91 (2020), the histogram scheme; the
//!   deterministic emission by tile counts is our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl
//! Entry points: radix_row · dispatch (1, num_rows, 1) · none: a workgroup a row, all in one dispatch
//!   histogram_0, histogram_1, histogram_2, count, emit · dispatch (ceil(max_len / TILE), num_rows, 1) · none
//! Overrides: WG_SIZE = 256; TILE = 4096, a multiple of 4 * WG_SIZE, at most 65532
//! Workgroup bytes: 8192 + 4 * WG_SIZE + 16
//! Algorithm: the digit in which the wanted rank falls is found by a prefix over the bins; its bin becomes the prefix
//!   that the next pass filters by. After three passes the key is known and how many of its equals are kept.
//!   Long rows: a dispatch a pass, each workgroup finds the digits again from the row's global bins (8 KiB, in cache)
//!   rather than pay a dispatch for it; `count` leaves counts a tile, `emit` sums those before its own.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run. `emit` leaves the
//!   histogram zero for the next call. A tile counts at most 65535 keys, so two counts share a word.

override TILE: u32 = 4096u;

const NUM_BINS: u32 = 2048u;
const PROTECTED_COUNT_IX: u32 = 5120u;  // words from the row's first bin

var<workgroup> bins: array<atomic<u32>, NUM_BINS>;
var<workgroup> wg_digit: u32;
var<workgroup> wg_rank: u32;
var<workgroup> wg_sum: atomic<u32>;
var<workgroup> wg_sum_equal: atomic<u32>;
var<workgroup> wg_row: SelectRow;

struct Found {
    prefix: u32, // digits found so far, in place
    rank: u32,   // rank of the wanted key among those with this prefix
}

fn shift_of(digit: u32) -> u32 {
    return select(select(0u, 10u, digit == 1u), 21u, digit == 0u);
}

fn bin_of(key: u32, digit: u32) -> u32 {
    return (key >> shift_of(digit)) & (NUM_BINS - 1u) & select(0x3ffu, 0x7ffu, digit < 2u);
}

fn matches(key: u32, digit: u32, prefix: u32) -> bool {
    if digit == 0u {
        return true;
    }
    let shift = shift_of(digit - 1u);
    return (key >> shift) == (prefix >> shift);
}

fn clear_bins(index: u32) {
    for (var b = index; b < NUM_BINS; b += WG_SIZE) {
        atomicStore(&bins[b], 0u);
    }
}

fn add_quad(keys: vec4<u32>, digit: u32, prefix: u32) {
    for (var i = 0u; i < 4u; i++) {
        let key = keys[i];
        if key != PAD_KEY && matches(key, digit, prefix) {
            atomicAdd(&bins[bin_of(key, digit)], 1u);
        }
    }
}

// Finds the bin of `found.rank` among the workgroup's bins and narrows the prefix by it. Starts and ends at a barrier.
fn narrow(index: u32, digit: u32, found: Found) -> Found {
    let per = NUM_BINS / WG_SIZE;
    var sum = 0u;
    for (var i = 0u; i < per; i++) {
        sum += atomicLoad(&bins[index * per + i]);
    }
    let before = exclusive_scan(index, sum).before;
    if found.rank >= before && found.rank - before < sum {
        var running = before;
        for (var i = 0u; i < per; i++) {
            let count = atomicLoad(&bins[index * per + i]);
            if found.rank >= running && found.rank - running < count {
                wg_digit = index * per + i;
                wg_rank = found.rank - running;
            }
            running += count;
        }
    }
    workgroupBarrier();
    let next = Found(found.prefix | (wg_digit << shift_of(digit)), wg_rank);
    workgroupBarrier();
    return next;
}

fn radix_row_of(local_row: u32, index: u32) {
    if index == 0u {
        wg_row = select_row_of(local_row);
        atomicStore(&wg_sum, 0u);
    }
    clear_bins(index);
    var s = workgroupUniformLoad(&wg_row);
    let len = s.row.len;
    let num_quads = (len + 3u) / 4u;
    let first = load_quad(local_row, len, index);

    // First digit, and the protected tokens beside it.
    var num_zero = 0u;
    for (var quad = index; quad < num_quads; quad += WG_SIZE) {
        var keys = first;
        if quad != index {
            keys = load_quad(local_row, len, quad);
        }
        num_zero += ones(keys == vec4<u32>(0u));
        add_quad(keys, 0u, 0u);
    }
    if num_zero > 0u {
        atomicAdd(&wg_sum, num_zero);
    }
    workgroupBarrier();
    let num_protected = atomicLoad(&wg_sum);
    s.budget = row_budget(s.entry, len, num_protected);
    if !s.row.active_row {
        s.budget = len;
    }
    var found = narrow(index, 0u, Found(0u, max(s.budget, 1u) - 1u));
    for (var digit = 1u; digit < 3u; digit++) {
        clear_bins(index);
        workgroupBarrier();
        for (var quad = index; quad < num_quads; quad += WG_SIZE) {
            var keys = first;
            if quad != index {
                keys = load_quad(local_row, len, quad);
            }
            add_quad(keys, digit, found.prefix);
        }
        workgroupBarrier();
        found = narrow(index, digit, found);
    }
    emit_row(index, local_row, s, first, found.prefix, found.rank + 1u, num_protected);
}

// Loads the row's global bins of one digit into the workgroup's.
fn load_bins(index: u32, local_row: u32, digit: u32) {
    let base = local_row * params.histogram_stride + digit * NUM_BINS;
    let num = select(1024u, NUM_BINS, digit < 2u);
    for (var b = index; b < NUM_BINS; b += WG_SIZE) {
        var count = 0u;
        if b < num {
            count = atomicLoad(&histogram[base + b]);
        }
        atomicStore(&bins[b], count);
    }
}

// Narrows by one digit of the row's global histogram.
fn narrow_global(index: u32, local_row: u32, digit: u32, found: Found) -> Found {
    load_bins(index, local_row, digit);
    workgroupBarrier();
    return narrow(index, digit, found);
}

fn long_row(local_row: u32) -> SelectRow {
    var s = select_row_of(local_row);
    let num_protected = atomicLoad(&histogram[local_row * params.histogram_stride + PROTECTED_COUNT_IX]);
    s.budget = row_budget(s.entry, s.row.len, num_protected);
    if !s.row.active_row {
        s.budget = s.row.len;
    }
    return s;
}

// The invocation's first quad of a tile, loaded before the digits are found so that its latency is hidden.
fn first_of(wg: vec3<u32>, index: u32, len: u32) -> vec4<u32> {
    return load_quad(wg.y, len, wg.x * (TILE / 4u) + index);
}

// Adds one tile's keys with this prefix to the row's global histogram of a digit.
fn count_tile(wg: vec3<u32>, index: u32, len: u32, digit: u32, prefix: u32, first: vec4<u32>) {
    clear_bins(index);
    workgroupBarrier();
    let first_quad = wg.x * (TILE / 4u);
    var num_zero = 0u;
    for (var q = index; q < TILE / 4u; q += WG_SIZE) {
        var keys = first;
        if q != index {
            keys = load_quad(wg.y, len, first_quad + q);
        }
        num_zero += ones(keys == vec4<u32>(0u));
        add_quad(keys, digit, prefix);
    }
    workgroupBarrier();
    let base = wg.y * params.histogram_stride;
    for (var b = index; b < NUM_BINS; b += WG_SIZE) {
        let count = atomicLoad(&bins[b]);
        if count > 0u {
            atomicAdd(&histogram[base + digit * NUM_BINS + b], count);
        }
    }
    if digit == 0u && num_zero > 0u {
        atomicAdd(&histogram[base + PROTECTED_COUNT_IX], num_zero);
    }
}

fn histogram_0_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
    }
    let len = workgroupUniformLoad(&wg_row).row.len;
    count_tile(wg, index, len, 0u, 0u, first_of(wg, index, len));
}

fn histogram_1_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = long_row(wg.y);
    }
    let s = workgroupUniformLoad(&wg_row);
    let first = first_of(wg, index, s.row.len);
    let found = narrow_global(index, wg.y, 0u, Found(0u, max(s.budget, 1u) - 1u));
    if wg.x == 0u && index == 0u {
        row_infos[params.first_info + wg.y].prefix_0 = found.prefix;
        row_infos[params.first_info + wg.y].rank_0 = found.rank;
    }
    count_tile(wg, index, s.row.len, 1u, found.prefix, first);
}

fn histogram_2_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
    }
    let s = workgroupUniformLoad(&wg_row);
    let first = first_of(wg, index, s.row.len);
    let before = Found(row_infos[params.first_info + wg.y].prefix_0, row_infos[params.first_info + wg.y].rank_0);
    let found = narrow_global(index, wg.y, 1u, before);
    if wg.x == 0u && index == 0u {
        row_infos[params.first_info + wg.y].prefix_1 = found.prefix;
        row_infos[params.first_info + wg.y].rank_1 = found.rank;
    }
    count_tile(wg, index, s.row.len, 2u, found.prefix, first);
}

fn count_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
        if params.from_sorted == 0u {
            wg_row = long_row(wg.y);
        }
    }
    let s = workgroupUniformLoad(&wg_row);
    let first = first_of(wg, index, s.row.len);
    var threshold = 0u;
    if params.from_sorted == 0u {
        let before = Found(row_infos[params.first_info + wg.y].prefix_1, row_infos[params.first_info + wg.y].rank_1);
        let found = narrow_global(index, wg.y, 2u, before);
        threshold = found.prefix;
        if wg.x == 0u && index == 0u {
            let num_protected = atomicLoad(&histogram[wg.y * params.histogram_stride + PROTECTED_COUNT_IX]);
            write_row_info(wg.y, s, threshold, found.rank + 1u, num_protected);
        }
    } else {
        threshold = row_infos[params.first_info + wg.y].threshold;
    }
    if index == 0u {
        atomicStore(&wg_sum, 0u);
    }
    workgroupBarrier();
    let first_quad = wg.x * (TILE / 4u);
    var sum = 0u;
    for (var q = index; q < TILE / 4u; q += WG_SIZE) {
        var keys = first;
        if q != index {
            keys = load_quad(wg.y, s.row.len, first_quad + q);
        }
        sum += count_quad(keys, threshold);
    }
    atomicAdd(&wg_sum, sum);
    workgroupBarrier();
    if index == 0u {
        atomicStore(&histogram[wg.y * params.histogram_stride + params.tile_counts_base + wg.x], atomicLoad(&wg_sum));
    }
}

fn emit_of(wg: vec3<u32>, index: u32) {
    if index == 0u {
        wg_row = select_row_of(wg.y);
        wg_row.budget = row_infos[params.first_info + wg.y].budget;
    }
    let s = workgroupUniformLoad(&wg_row);
    let threshold = row_infos[params.first_info + wg.y].threshold;
    let num_ties = row_infos[params.first_info + wg.y].num_ties;
    let histogram_base = wg.y * params.histogram_stride;
    let len = select(0u, s.row.len, s.row.active_row);
    var next = first_of(wg, index, len);

    // Counts of the tiles before this one; the halves are summed apart, since together they would overflow.
    var below = 0u;
    var equal = 0u;
    for (var t = index; t < wg.x; t += WG_SIZE) {
        let counts = atomicLoad(&histogram[histogram_base + params.tile_counts_base + t]);
        below += counts & 0xffffu;
        equal += counts >> 16u;
    }
    if index == 0u {
        atomicStore(&wg_sum, 0u);
        atomicStore(&wg_sum_equal, 0u);
    }
    workgroupBarrier();
    if below > 0u {
        atomicAdd(&wg_sum, below);
    }
    if equal > 0u {
        atomicAdd(&wg_sum_equal, equal);
    }
    workgroupBarrier();
    below = atomicLoad(&wg_sum);
    equal = atomicLoad(&wg_sum_equal);

    let first_quad = wg.x * (TILE / 4u);
    for (var base = 0u; base < TILE / 4u; base += WG_SIZE) {
        let quad = first_quad + base + index;
        let keys = next;
        next = load_quad(wg.y, len, quad + WG_SIZE);
        let scanned = exclusive_scan(index, count_quad(keys, threshold));
        if s.row.active_row {
            let before = vec2<u32>(below + (scanned.before & 0xffffu), equal + (scanned.before >> 16u));
            emit_quad(wg.y, s, threshold, num_ties, quad, keys, before.x, before.y);
        }
        below += scanned.total & 0xffffu;
        equal += scanned.total >> 16u;
        workgroupBarrier(); // between two scans
    }

    // The histogram is left zero for the next call: nothing reads the bins in this dispatch.
    if wg.x == 0u && params.from_sorted == 0u {
        for (var b = index; b <= PROTECTED_COUNT_IX; b += WG_SIZE) {
            atomicStore(&histogram[histogram_base + b], 0u);
        }
    }
}
