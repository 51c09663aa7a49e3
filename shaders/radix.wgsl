//! radix: the threshold of each row by histograms of its order keys' digits, then the kept slots.
//! Source: histogram selection as in J. Zhang et al., "Parallel Top-K Algorithms on GPU", SC '23; the deterministic
//!   emission is our own. Reference: src/reference/top_k.rs, exact.
//! Bindings: shared/top_k_rows.wgsl, and
//!   6 histogram read_write atomic u32 [row, histogram_stride]: counts of first digits, and other counts
//! Entry points: radix_row · dispatch (1, SCOUTS + num_rows, 1) · none | subgroups: rows up to 8 * WG_SIZE tokens, or twice
//!   as many with PAIR_WORDS
//!   count_digits · dispatch (ceil(max_len / (8 * WG_SIZE)), num_rows, 1) · none | subgroups: longer rows, whose
//!   selection radix_long.wgsl goes on with
//! Overrides: WG_SIZE = 256, 512 or 1024; IN_ORDER = false; SCOUTS = 0, rows of the grid that shared/scout.wgsl speaks of;
//!   PAIR_WORDS = 0, or in radix_row 4 * WG_SIZE
//! Workgroup bytes: 32 * WG_SIZE, beyond 512 half of it, + 4 * WG_SIZE + 224
//! Algorithm: a first digit of eleven bits leaves about a hundredth of the keys in the bin of the threshold. radix_row
//!   holds a row's keys in registers and ranks those of the bin against each other.
//! Invariants: counts are integers, so atomics commute and the result is the same in every run. Any distribution of keys
//!   is exact; one that puts most keys into one bin only makes more of them be narrowed digit by digit.

@group(0) @binding(6) var<storage, read_write> histogram: array<atomic<u32>>;

override WG_SIZE: u32 = 256u;
override IN_ORDER: bool = false; // kept tokens keep their order, else movers fill holes
override SCOUTS: u32 = 0u; // of radix_row
override PAIR_WORDS: u32 = 0u; // of radix_row: 0, or for rows of two tiles words for the slots of one, two a word

const SLOT_WORDS: u32 = 0u;
const BY_TILE: bool = true;

var<workgroup> wg_row: SelectRow;

fn select_whole_row(grid: vec3<u32>, index: u32) {
    let wg = behind_scouts(grid);
    var raw: HeldKeys;
    if !is_scout(grid) {
        raw.first = load_raw(wg.y, index);
        if PAIR_WORDS > 0u {
            raw.second = load_raw(wg.y, WG_SIZE + index);
        }
    }
    if index == 0u {
        wg_row = SelectRow();
        if !is_scout(grid) {
            wg_row = select_row_of(wg.y);
            wg_row.row = leave_longer(wg_row.row, tiles_held() * 8u * WG_SIZE);
        }
    }
    start_selection(index);
    var s = workgroupUniformLoad(&wg_row);
    let len = select(0u, s.row.len, s.row.active_row); // of a row that is left nothing is counted
    var k = HeldKeys(mask_keys(raw.first, len, index), Keys());
    if PAIR_WORDS > 0u {
        k.second = mask_keys(raw.second, len, WG_SIZE + index);
    }
    s = select_in_row(index, k, s, parts_left_out(grid, 1u, NUM_PARTS));
    let counts = emit_tile(index, wg.y, s, k.first, 0u, 0u, 0u).total;
    if PAIR_WORDS > 0u {
        workgroupBarrier(); // what the first tile has staged has been read
        _ = emit_tile(index, wg.y, s, k.second, 8u * WG_SIZE, counts & 0xffffu, counts >> 16u);
    }
    if index == 0u && !is_scout(grid) {
        write_row_info(wg.y, s, vec4<u32>(s.threshold, s.num_ties, 0u, 0u));
    }
}

// Counts first digits where the score stage has not: the keys may be the caller's.
fn count_tile(wg: vec3<u32>, index: u32) {
    let eight = wg.x * WG_SIZE + index;
    let raw = load_raw(wg.y, eight);
    clear_bins(index, NUM_BINS);
    if index == 0u {
        wg_row = select_row_of(wg.y);
        atomicStore(&wg_count, 0u);
        atomicStore(&wg_within, 0u);
    }
    let s = workgroupUniformLoad(&wg_row);
    let k = mask_keys(raw, select(0u, s.row.len, s.row.active_row), eight);
    add_first_digits(k);
    count_protected(k);
    count_limited(k, s.rule);
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
