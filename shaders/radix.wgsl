//! radix: the threshold of each row by histograms of its order keys' digits, then the kept slots.
//! Source: histogram selection as in J. Zhang et al., "Parallel Top-K Algorithms on GPU", SC '23; setting aside the bin of
//!   the threshold and the deterministic emission are our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl
//! Entry points: radix_row · dispatch (1, num_rows, 1) · none: rows up to 8 * WG_SIZE tokens
//!   count_digits, collect, emit · dispatch (ceil(max_len / (8 * WG_SIZE)), num_rows, 1) · none: rows of any length
//! Overrides: WG_SIZE = 256, a multiple of 64
//! Workgroup bytes: 8192 + 4 * WG_SIZE + 224
//! Algorithm: a first digit of eleven bits leaves about a hundredth of the keys in the bin of the threshold. radix_row
//!   holds a row's keys in registers and ranks those of the bin against each other.
//!   Long rows: the score stage has counted first digits. `collect` finds the bin, counts the keys below it in each tile
//!   and sets the keys of the bin aside. `emit` finds the threshold among them, each workgroup for itself, sums the
//!   counts of the tiles before its own and emits.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run; the order in which keys
//!   are set aside is not, but they are only counted. `emit` leaves the histogram zero for the next call. Any
//!   distribution of keys is exact; one that puts most keys into one bin only makes more of them be narrowed digit by
//!   digit.

// Where keys are held in `bins`, after the bins of one digit, and how many.
const HELD_IX: u32 = SMALL_BINS;
const MAX_HELD: u32 = NUM_BINS - SMALL_BINS;

var<workgroup> wg_below: atomic<u32>;
var<workgroup> wg_equal: atomic<u32>;

@compute @workgroup_size(WG_SIZE)
fn radix_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let raw = load_raw(wg.y, index);
    if index == 0u {
        wg_row = select_row_of(wg.y);
    }
    start_selection(index);
    var s = workgroupUniformLoad(&wg_row);
    let k = mask_keys(raw, s.row.len, index);
    s = select_in_row(index, k, s);
    if index == 0u {
        write_row_info(wg.y, s);
    }
    let scanned = emit_tile(index, wg.y, s, k, 0u, 0u, 0u);
}

// Counts first digits where the score stage has not: the keys may be the caller's.
@compute @workgroup_size(WG_SIZE)
fn count_digits(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    clear_bins(index, NUM_BINS);
    if index == 0u {
        wg_row = select_row_of(wg.y);
        atomicStore(&wg_count, 0u);
        atomicStore(&wg_within, 0u);
    }
    let s = workgroupUniformLoad(&wg_row);
    let k = mask_keys(raw, s.row.len, eight);
    add_first_digits(k);
    count_for_budget(k, s.rule);
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
    if index == 0u && atomicLoad(&wg_within) > 0u {
        atomicAdd(&histogram[base + WITHIN_COUNT_IX], atomicLoad(&wg_within));
    }
}

// Where a tile's counts are: keys below the bin; from sorted rows, keys below and equal to the threshold.
fn tile_counts_ix(local_row: u32, tile: u32) -> u32 {
    return local_row * params.histogram_stride + params.tile_counts_base + 2u * tile;
}

@compute @workgroup_size(WG_SIZE)
fn collect(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let base = wg.y * params.histogram_stride;
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    let from_sorted = params.from_sorted == 1u;
    if !from_sorted {
        for (var b = index; b < NUM_BINS; b += WG_SIZE) {
            atomicStore(&bins[b], atomicLoad(&histogram[base + b]));
        }
    }
    if index == 0u {
        let num_protected = atomicLoad(&histogram[base + select(PROTECTED_COUNT_IX, 0u, from_sorted)]);
        wg_row = select_row_of(wg.y);
        wg_row.num_protected = num_protected;
        wg_row.num_within = atomicLoad(&histogram[base + select(WITHIN_COUNT_IX, 0u, from_sorted)]);
        wg_row.budget = row_budget(wg_row);
        wg_row.threshold = row_infos[params.first_info + wg.y].threshold;
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
    }
    let s = workgroupUniformLoad(&wg_row);
    let k = mask_keys(raw, s.row.len, eight);
    var counts = 0u;
    var bin = keys_of_bin(0u);
    if from_sorted {
        counts = count_keys(k, s.threshold);
    } else {
        let found = narrow(index, NUM_BINS, max(s.budget, 1u) - 1u);
        if wg.x == 0u && index == 0u {
            let ix = params.first_info + wg.y;
            row_infos[ix].budget = s.budget;
            row_infos[ix].num_protected = s.num_protected;
            row_infos[ix].num_within = s.num_within;
            row_infos[ix].bin = found.digit;
            row_infos[ix].bin_rank = found.rank;
            row_infos[ix].bin_count = found.count;
        }
        bin = keys_of_bin(found.digit);
        counts = count_bin(k, bin);
    }
    let scanned = exclusive_scan(index, counts);
    if index == 0u {
        let num_equal = scanned.total >> 16u;
        let ix = tile_counts_ix(wg.y, wg.x);
        atomicStore(&histogram[ix], scanned.total & 0xffffu);
        atomicStore(&histogram[ix + 1u], select(0u, num_equal, from_sorted));
        if !from_sorted && num_equal > 0u {
            atomicStore(&wg_count, atomicAdd(&histogram[base + ASIDE_COUNT_IX], num_equal));
        }
    }
    workgroupBarrier();
    if !from_sorted {
        set_aside(k, bin, eight * 8u, aside_ix(wg.y, atomicLoad(&wg_count) + (scanned.before >> 16u)));
    }
}

// The keys of a bin: from `first` on, below `end`.
struct BinKeys {
    first: vec4<u32>,
    end: vec4<u32>,
}

// The first bin and the last hold what lies before and after the window, but no pads.
fn keys_of_bin(bin: u32) -> BinKeys {
    let first = (bin + params.digit_base) << params.digit_shift;
    let end = (bin + params.digit_base + 1u) << params.digit_shift;
    return BinKeys(
        vec4<u32>(select(first, 0u, bin == 0u)),
        vec4<u32>(select(end, PAD_KEY, bin == NUM_BINS - 1u)),
    );
}

// Keys below the bin in the low half, keys of it in the high half.
fn count_bin(k: Keys, b: BinKeys) -> u32 {
    let below = ones(k.low < b.first) + ones(k.high < b.first);
    return below | ((ones(k.low < b.end) + ones(k.high < b.end) - below) << 16u);
}

fn key_of(k: Keys, i: u32) -> u32 {
    let v = select(k.low, k.high, i >= 4u);
    return select(select(v.x, v.y, (i & 1u) != 0u), select(v.z, v.w, (i & 1u) != 0u), (i & 2u) != 0u);
}

// Writes the (key, slot) pairs of the bin from a place on.
fn set_aside(k: Keys, b: BinKeys, first_slot: u32, first_place: u32) {
    var left = bits(k.low < b.end, k.high < b.end) & ~bits(k.low < b.first, k.high < b.first);
    for (var place = first_place; left != 0u; place += 2u) {
        let i = firstTrailingBit(left);
        lists[place] = key_of(k, i);
        lists[place + 1u] = first_slot + i;
        left &= left - 1u;
    }
}

fn aside_ix(local_row: u32, place: u32) -> u32 {
    return local_row * params.lists_stride + params.aside_offset + 2u * place;
}

fn key_aside(local_row: u32, place: u32) -> u32 {
    return lists[aside_ix(local_row, place)];
}

@compute @workgroup_size(WG_SIZE)
fn emit(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    if index == 0u {
        let info = row_infos[params.first_info + wg.y];
        wg_row = select_row_of(wg.y);
        wg_row.budget = info.budget;
        wg_row.num_protected = info.num_protected;
        wg_row.num_within = info.num_within;
        wg_row.bin = info.bin;
        wg_row.bin_rank = info.bin_rank;
        wg_row.bin_count = info.bin_count;
        wg_row.threshold = info.threshold;
        wg_row.num_ties = info.num_ties;
        wg_found = Found(0u, 0u, 0u);
        atomicStore(&wg_below, 0u);
        atomicStore(&wg_equal, 0u);
    }
    var s = workgroupUniformLoad(&wg_row);
    if params.from_sorted == 0u {
        let found = threshold_aside(index, s, wg.y);
        s.threshold = found.digit;
        s.num_ties = found.rank + 1u;
        if wg.x == 0u && index == 0u {
            write_row_info(wg.y, s);
        }
    }
    let before = before_tile(wg, index, s);
    let first_slot = wg.x * WG_SIZE * 8u;
    let scanned = emit_tile(index, wg.y, s, mask_keys(raw, s.row.len, eight), first_slot, before.x, before.y);

    // Nothing reads these in this dispatch.
    if wg.x == 0u && params.from_sorted == 0u {
        for (var b = index; b <= WITHIN_COUNT_IX; b += WG_SIZE) {
            atomicStore(&histogram[wg.y * params.histogram_stride + b], 0u);
        }
    }
}

// The threshold among the keys set aside, eight bits at a time; a few are ranked at once.
fn threshold_aside(index: u32, s: SelectRow, local_row: u32) -> Found {
    let held_ix = select(HELD_IX, 0u, s.bin_count <= FEW);
    if s.bin_count <= MAX_HELD {
        for (var i = index; i < s.bin_count; i += WG_SIZE) {
            atomicStore(&bins[held_ix + i], key_aside(local_row, i));
        }
    }
    workgroupBarrier();
    if s.bin_count <= FEW {
        return rank_few(index, s.bin_count, s.bin_rank);
    }
    var n = narrowing_of(s.bin);
    var rank = s.bin_rank;
    for (var left = 4u; left > 0u; left--) {
        let shift = (left - 1u) * 8u;
        if ((n.above >> shift) & (SMALL_BINS - 1u)) == SMALL_BINS - 1u {
            continue; // the bin tells this digit; the same for the whole workgroup
        }
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        for (var i = index; i < s.bin_count; i += WG_SIZE) {
            if s.bin_count <= MAX_HELD {
                add_digit(atomicLoad(&bins[HELD_IX + i]), n, shift);
            } else {
                add_digit(key_aside(local_row, i), n, shift);
            }
        }
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        n = narrowed(n, next.digit, shift);
        rank = next.rank;
    }
    return Found(n.threshold, rank, 0u);
}

// Keys below and equal to the threshold in the tiles before this one. Ends at a barrier.
fn before_tile(wg: vec3<u32>, index: u32, s: SelectRow) -> vec2<u32> {
    var below = 0u;
    var equal = 0u;
    for (var t = index; t < wg.x; t += WG_SIZE) {
        below += atomicLoad(&histogram[tile_counts_ix(wg.y, t)]);
        equal += atomicLoad(&histogram[tile_counts_ix(wg.y, t) + 1u]);
    }
    if params.from_sorted == 0u {
        for (var i = index; i < s.bin_count; i += WG_SIZE) {
            let key = lists[aside_ix(wg.y, i)];
            let slot = lists[aside_ix(wg.y, i) + 1u];
            let is_before = slot < wg.x * WG_SIZE * 8u;
            below += u32(is_before && key < s.threshold);
            equal += u32(is_before && key == s.threshold);
        }
    }
    if below > 0u {
        atomicAdd(&wg_below, below);
    }
    if equal > 0u {
        atomicAdd(&wg_equal, equal);
    }
    workgroupBarrier();
    return vec2<u32>(atomicLoad(&wg_below), atomicLoad(&wg_equal));
}
