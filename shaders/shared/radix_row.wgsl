// The threshold of a row whose keys the invocations of one workgroup hold, by histograms of their digits.

const SMALL_BINS: u32 = 256u;
// Keys of a bin that are ranked against each other rather than narrowed further.
const FEW: u32 = 128u;

var<workgroup> bins: array<atomic<u32>, NUM_BINS>;
var<workgroup> wg_found: Found;
var<workgroup> wg_count: atomic<u32>;
var<workgroup> wg_threshold: atomic<u32>;
var<workgroup> wg_tie: atomic<u32>;
var<workgroup> wg_within: atomic<u32>;
var<workgroup> wg_row: SelectRow;

struct Found {
    digit: u32, // bin in which the wanted rank falls, or the threshold itself
    rank: u32,  // rank among the bin's keys
    count: u32, // keys in the bin
}

struct Narrowing {
    threshold: u32, // bits found so far
    above: u32,     // mask of the bits found so far
}

fn clear_bins(index: u32, num_bins: u32) {
    for (var b = index; b < num_bins; b += WG_SIZE) {
        atomicStore(&bins[b], 0u);
    }
}

// Finds the bin of a rank among the workgroup's bins. The caller has passed a barrier; ends at one.
fn narrow(index: u32, num_bins: u32, rank: u32) -> Found {
    let per = max(num_bins / WG_SIZE, 1u);
    let first = index * per;
    var sum = 0u;
    for (var b = 0u; b < per; b++) {
        sum += select(0u, atomicLoad(&bins[min(first + b, NUM_BINS - 1u)]), first + b < num_bins);
    }
    var running = exclusive_scan(index, sum).before;
    if rank >= running && rank - running < sum {
        for (var b = 0u; b < per; b++) {
            let count = atomicLoad(&bins[first + b]);
            if rank >= running && rank - running < count {
                wg_found = Found(first + b, rank - running, count);
            }
            running += count;
        }
    }
    return workgroupUniformLoad(&wg_found);
}

// The threshold among num keys in `bins`. Starts and ends at a barrier.
fn rank_few(index: u32, num: u32, rank: u32) -> Found {
    for (var k = index; k < num; k += WG_SIZE) {
        let key = atomicLoad(&bins[k]);
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

fn first_digit_of(key: u32) -> u32 {
    return first_digit(key, params.digit_shift, params.digit_base);
}

fn add_first_digits(keys: Keys) {
    var k = keys;
    for (var i = 0u; i < params.keys_held; i++) {
        if k.low.x != PAD_KEY {
            atomicAdd(&bins[first_digit_of(k.low.x)], 1u);
        }
        k = rotated(k);
    }
}

fn add_digit(key: u32, n: Narrowing, shift: u32) {
    if ((key ^ n.threshold) & n.above) == 0u {
        atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
    }
}

// The bits of the threshold that its bin tells: those above the shift, but none in the first and last bin.
fn narrowing_of(bin: u32) -> Narrowing {
    if bin == 0u || bin == NUM_BINS - 1u {
        return Narrowing(0u, 0u);
    }
    return Narrowing((bin + params.digit_base) << params.digit_shift, 0xffffffffu << params.digit_shift);
}

fn narrowed(n: Narrowing, digit: u32, shift: u32) -> Narrowing {
    let mask = (SMALL_BINS - 1u) << shift;
    return Narrowing((n.threshold & ~mask) | (digit << shift), n.above | mask);
}

// What budgets depend on: protected keys, and keys up to a limit.
fn count_for_budget(k: Keys, rule: RowRule) {
    let zeros = count_zeros(k);
    if zeros > 0u {
        atomicAdd(&wg_count, zeros);
    }
    let within = count_within(k, rule);
    if within > 0u {
        atomicAdd(&wg_within, within);
    }
}

fn start_selection(index: u32) {
    clear_bins(index, NUM_BINS);
    if index == 0u {
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
        atomicStore(&wg_count, 0u);
        atomicStore(&wg_within, 0u);
    }
}

// Budget, threshold and ties of a row whose keys the workgroup's invocations hold. After start_selection and a barrier.
fn select_in_row(index: u32, k: Keys, row: SelectRow) -> SelectRow {
    var s = row;
    add_first_digits(k);
    count_for_budget(k, s.rule);
    workgroupBarrier();
    s.num_protected = atomicLoad(&wg_count);
    s.num_within = atomicLoad(&wg_within);
    s.budget = row_budget(s);
    var found = narrow(index, NUM_BINS, max(s.budget, 1u) - 1u);
    let bin = found.digit;
    if found.count <= FEW {
        if index == 0u {
            atomicStore(&wg_count, 0u);
        }
        workgroupBarrier();
        hold_keys(k, bin);
        workgroupBarrier();
        found = rank_few(index, found.count, found.rank);
    } else {
        found = narrow_row(index, k, bin, found.rank);
    }
    s.threshold = found.digit;
    s.num_ties = found.rank + 1u;
    return s;
}

// Puts the keys of a bin into `bins`, whose counts are no longer needed. Their order does not matter.
fn hold_keys(keys: Keys, bin: u32) {
    var k = keys;
    for (var i = 0u; i < params.keys_held; i++) {
        if k.low.x != PAD_KEY && first_digit_of(k.low.x) == bin {
            atomicStore(&bins[atomicAdd(&wg_count, 1u)], k.low.x);
        }
        k = rotated(k);
    }
}

// The threshold among the many keys of a bin that the row's invocations hold, eight bits at a time.
fn narrow_row(index: u32, k: Keys, bin: u32, wanted: u32) -> Found {
    var n = narrowing_of(bin);
    var rank = wanted;
    for (var left = 4u; left > 0u; left--) {
        let shift = (left - 1u) * 8u;
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        add_digits(k, bin, n, shift);
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        n = narrowed(n, next.digit, shift);
        rank = next.rank;
    }
    return Found(n.threshold, rank, 0u);
}

fn add_digits(keys: Keys, bin: u32, n: Narrowing, shift: u32) {
    var k = keys;
    for (var i = 0u; i < params.keys_held; i++) {
        if k.low.x != PAD_KEY && first_digit_of(k.low.x) == bin {
            add_digit(k.low.x, n, shift);
        }
        k = rotated(k);
    }
}
