// The threshold of a row whose keys the invocations of one workgroup hold, by histograms of their digits. The module gives
// SLOT_WORDS: words to stage slots in, 0 where they share those of the bins; and PAIR_WORDS: 0, or words to stage two slots
// each, where an invocation holds eight keys of a row's first tile and eight of a second.

const SMALL_BINS: u32 = 256u;
// Of the counts of first digits beside slots in words of their own: two a word, since a workgroup has fewer than 2^16 keys.
const DIGIT_WORDS: u32 = NUM_BINS / 2u;
// Most invocations whose slots are staged a word each.
const MOST_WHOLE: u32 = 512u;
// Keys of a bin that are ranked against each other rather than narrowed further.
const FEW: u32 = 128u;

// Bins, keys of one bin, or the slots of a tile or a row: two a word where they would not fit otherwise.
var<workgroup> bins: array<
    atomic<u32>,
    max(
        select(DIGIT_WORDS, select(8u * WG_SIZE, 4u * WG_SIZE, WG_SIZE > MOST_WHOLE), SLOT_WORDS == 0u),
        PAIR_WORDS
    )
>;
var<workgroup> slots: array<u32, max(SLOT_WORDS, 1u)>; // before them, of row.wgsl, its keys
var<workgroup> wg_found: Found;
var<workgroup> wg_count: atomic<u32>;
var<workgroup> wg_threshold: atomic<u32>;
var<workgroup> wg_tie: atomic<u32>;
var<workgroup> wg_within: atomic<u32>;

struct Found {
    digit: u32, // bin in which the wanted rank falls, or the threshold itself
    rank: u32,  // rank among the bin's keys
    count: u32, // keys in the bin
}

// Bits of the threshold that are known: those from `shift` on are those of `prefix`; with a shift of 32 none.
struct Known {
    prefix: u32,
    shift: u32,
}

// What an invocation holds of a row.
struct HeldKeys {
    first: Keys,
    second: Keys, // where there are two tiles
}

// Tiles of which it holds eight keys each.
fn tiles_held() -> u32 {
    return select(1u, 2u, PAIR_WORDS > 0u);
}

// Whether slots are staged two a word.
fn slots_are_packed() -> bool {
    return WG_SIZE > MOST_WHOLE || PAIR_WORDS > 0u;
}

fn clear_staged(index: u32) {
    if SLOT_WORDS == 0u && slots_are_packed() {
        clear_bins(index, max(4u * WG_SIZE, PAIR_WORDS));
    }
}

fn stage(place: u32, value: u32) {
    if SLOT_WORDS > 0u {
        slots[place] = value;
    } else if slots_are_packed() {
        // Neighbours in a word may be of two invocations.
        atomicOr(&bins[place / 2u], value << (place % 2u * 16u));
    } else {
        atomicStore(&bins[place], value);
    }
}

fn staged(place: u32) -> u32 {
    if SLOT_WORDS > 0u {
        return slots[place];
    } else if slots_are_packed() {
        return (atomicLoad(&bins[place / 2u]) >> (place % 2u * 16u)) & 0xffffu;
    }
    return atomicLoad(&bins[place]);
}

fn num_staged() -> u32 {
    return select(select(8u * WG_SIZE, 2u * PAIR_WORDS, PAIR_WORDS > 0u), SLOT_WORDS, SLOT_WORDS > 0u);
}

fn clear_bins(index: u32, num_bins: u32) {
    for (var b = index; b < num_bins; b += WG_SIZE) {
        atomicStore(&bins[b], 0u);
    }
}

fn add_first_digit(key: u32) {
    let bin = first_digit(key, params.digit_shift, params.digit_window);
    if SLOT_WORDS > 0u {
        atomicAdd(&bins[bin / 2u], 1u << (bin % 2u * 16u));
    } else {
        atomicAdd(&bins[bin], 1u);
    }
}

// Keys in a bin; `is_packed` where two bins share a word.
fn count_of(bin: u32, is_packed: bool) -> u32 {
    if is_packed {
        return (atomicLoad(&bins[bin / 2u]) >> (bin % 2u * 16u)) & 0xffffu;
    }
    return atomicLoad(&bins[bin]);
}

// Finds the bin of a rank among the workgroup's bins. The caller has passed a barrier; ends at one.
fn narrow(index: u32, num_bins: u32, rank: u32, is_packed: bool) -> Found {
    let per = max(num_bins / WG_SIZE, 1u);
    let first = index * per;
    // Begins at a bin of its own among its neighbours', whose banks differ.
    let turn = index * per / 32u;
    var sum = 0u;
    if first < num_bins {
        for (var b = 0u; b < per; b++) {
            sum += count_of(first + (b + turn) % per, is_packed);
        }
    }
    var running = exclusive_scan(index, sum).before;
    if rank >= running && rank - running < sum {
        for (var b = 0u; b < per; b++) {
            let count = count_of(first + b, is_packed);
            if rank >= running && rank - running < count {
                wg_found = Found(first + b, rank - running, count);
            }
            running += count;
        }
    }
    return workgroupUniformLoad(&wg_found);
}

// The threshold among num keys in `bins`, at most FEW. Starts and ends at a barrier.
fn rank_few(index: u32, num_keys: u32, rank: u32) -> Found {
    let num = min(num_keys, FEW); // soon at its end whatever the counts hold
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

fn add_first_digits(keys: Keys) {
    var k = keys;
    for (var i = 0u; i < params.keys_held; i++) {
        if k.low.x != PAD_KEY {
            add_first_digit(k.low.x);
        }
        k = rotated(k);
    }
}

fn is_known(key: u32, known: Known) -> bool {
    return known.shift >= 32u || (key >> known.shift) == known.prefix;
}

fn add_digit(key: u32, known: Known, shift: u32) {
    if is_known(key, known) {
        atomicAdd(&bins[(key >> shift) & (SMALL_BINS - 1u)], 1u);
    }
}

// The bits that the keys of a first digit have in common, were there none beyond all bins.
fn prefix_of(bin: u32) -> Known {
    let first = params.digit_window & 0xffffu;
    let len = params.digit_window >> 16u;
    if bin - first < (len << WIDE_BITS) { // before the window it is far more, modulo 2^32
        return Known(bin + bins_of_window(first), params.digit_shift);
    }
    return Known(select(bin, bin - bins_of_window(len), bin > first), params.digit_shift + WIDE_BITS);
}

// What the bin of a first digit tells: of the last bin nothing.
fn known_by(bin: u32) -> Known {
    if bin == NUM_BINS - 1u {
        return Known(0u, 32u);
    }
    return prefix_of(bin);
}

// The shift of the digit after those that are known: eight bits, which the last one shares with known bits.
fn next_shift(known: Known) -> u32 {
    return max(known.shift, 8u) - 8u;
}

// The bits known with that digit.
fn known_with(known: Known, digit: u32, shift: u32) -> Known {
    let width = known.shift - shift;
    let above = select(known.prefix << width, 0u, known.shift >= 32u);
    return Known(above | (digit & ((1u << width) - 1u)), shift);
}

// The keys of a bin: from `first` to `last`.
struct BinKeys {
    first: vec4<u32>,
    last: vec4<u32>,
}

// The last bin holds what lies beyond; pads, which a wide bin may reach, are of none.
fn keys_of_bin(bin: u32) -> BinKeys {
    let known = prefix_of(bin);
    let last = ((known.prefix + 1u) << known.shift) - 1u;
    return BinKeys(
        vec4<u32>(known.prefix << known.shift),
        vec4<u32>(select(min(last, PAD_KEY - 1u), PAD_KEY - 1u, bin == NUM_BINS - 1u)),
    );
}

// Which of eight keys are of the bin.
fn bits_of_bin(k: Keys, b: BinKeys) -> u32 {
    return bits(k.low <= b.last, k.high <= b.last) & ~bits(k.low < b.first, k.high < b.first);
}

// Likewise of all that an invocation holds.
fn held_of_bin(k: HeldKeys, b: BinKeys) -> u32 {
    var of_bin = bits_of_bin(k.first, b);
    if PAIR_WORDS > 0u {
        of_bin |= bits_of_bin(k.second, b) << 8u;
    }
    return of_bin;
}

fn held_key(k: HeldKeys, i: u32) -> u32 {
    if PAIR_WORDS > 0u && i >= 8u {
        return key_of(k.second, i - 8u);
    }
    return key_of(k.first, i);
}

fn key_of(k: Keys, i: u32) -> u32 {
    let v = select(k.low, k.high, i >= 4u);
    return select(select(v.x, v.y, (i & 1u) != 0u), select(v.z, v.w, (i & 1u) != 0u), (i & 2u) != 0u);
}

// What budgets depend on: protected keys, and of some rules keys up to a limit.
fn count_protected(k: Keys) {
    let zeros = count_zeros(k);
    if zeros > 0u {
        atomicAdd(&wg_count, zeros);
    }
}

fn count_limited(k: Keys, rule: RowRule) {
    if rule.budget_mode == 3u {
        atomicAdd(&wg_within, count_within(k, rule.key_limit));
    }
}

fn start_selection(index: u32) {
    clear_bins(index, select(NUM_BINS, DIGIT_WORDS, SLOT_WORDS > 0u));
    if index == 0u {
        wg_found = Found(0u, 0u, 0u); // an empty row finds nothing
        atomicStore(&wg_count, 0u);
        atomicStore(&wg_within, 0u);
    }
}

// Parts that a scout may begin with: the bin of the threshold, what is in it, the slots.
const NUM_PARTS: u32 = 3u;

// Budget, threshold and ties of a row whose keys the workgroup's invocations hold. After start_selection and a barrier.
// Where slots have words of their own, first digits and protected keys were counted as the keys were scored.
fn select_in_row(index: u32, k: HeldKeys, row: SelectRow, left_out: u32) -> SelectRow {
    var s = row;
    var found = Found(0u, 0u, 1u);
    if left_out < 1u {
        found = bin_in_row(index, k, &s);
    }
    if left_out < 2u {
        found = threshold_in_bin(index, k, found);
    }
    s.threshold = found.digit;
    s.num_ties = found.rank + 1u;
    return s;
}

// The bin of the threshold, and of the row its budget.
fn bin_in_row(index: u32, k: HeldKeys, s: ptr<function, SelectRow>) -> Found {
    var keys = k.first;
    for (var t = 0u; t < tiles_held(); t++) {
        if SLOT_WORDS == 0u {
            add_first_digits(keys);
            count_protected(keys);
        }
        count_limited(keys, (*s).rule);
        keys = k.second;
    }
    workgroupBarrier();
    (*s).num_protected = atomicLoad(&wg_count);
    (*s).num_within = atomicLoad(&wg_within);
    (*s).budget = row_budget(*s);
    return narrow(index, NUM_BINS, max((*s).budget, 1u) - 1u, SLOT_WORDS > 0u);
}

// Ends at a barrier.
fn threshold_in_bin(index: u32, k: HeldKeys, bin: Found) -> Found {
    var found = bin;
    let of_bin = held_of_bin(k, keys_of_bin(found.digit));
    if found.count <= FEW {
        if index == 0u {
            atomicStore(&wg_count, 0u);
        }
        workgroupBarrier();
        // Holds the keys of the bin in `bins`, whose counts are no longer needed. Their order does not matter.
        for (var left = of_bin; left != 0u; left &= left - 1u) {
            atomicStore(&bins[atomicAdd(&wg_count, 1u)], held_key(k, firstTrailingBit(left)));
        }
        workgroupBarrier();
        found = rank_few(index, found.count, found.rank);
    } else {
        found = narrow_row(index, k, of_bin, found);
    }
    return found;
}

// The threshold among the many keys of a bin that the row's invocations hold, eight bits at a time.
fn narrow_row(index: u32, k: HeldKeys, of_bin: u32, found: Found) -> Found {
    var known = known_by(found.digit);
    var rank = found.rank;
    for (var round = 0u; round < 4u && known.shift > 0u; round++) {
        let shift = next_shift(known);
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        for (var left = of_bin; left != 0u; left &= left - 1u) {
            add_digit(held_key(k, firstTrailingBit(left)), known, shift);
        }
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank, false);
        known = known_with(known, next.digit, shift);
        rank = next.rank;
    }
    return Found(known.prefix, rank, 0u);
}
