// Keys of the threshold's bin, set aside by tiles of a row, and the threshold among them. Where they are many, each tile
// sorts its own by their next digit and leaves where the keys of each end. The module gives histogram, TILE, MORE_TILES,
// tile_quad, tile_counts and sums_of.

// Keys set aside that are ranked against each other rather than narrowed further.
const FEW_ASIDE: u32 = 64u;
// Keys of a bin up to which tiles leave them unsorted. See benches/record.
const MANY_ASIDE: u32 = 4096u;
// Two ends a word.
const END_WORDS: u32 = SMALL_BINS / 2u;
// In place of a digit: keys aside are in no order, or they are equal.
const UNSORTED: u32 = 0xffffffffu;
const EQUAL: u32 = 0xfffffffeu;

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

// Keys below and equal to the threshold in the tiles before that one.
fn before_tile(local_row: u32, end_tile: u32, t: Threshold) -> vec2<u32> {
    var sums = vec2<u32>(0u);
    for (var a = t.asides; a.tile < end_tile; a = next_tile(a, t.digit, local_row, end_tile)) {
        sums += sums_aside(a, local_row, t.key);
    }
    return sums_of(sums.x, sums.y);
}
