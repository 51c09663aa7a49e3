// Emission: from a row's threshold to its slots, in slot order, by prefix sums. An invocation holds eight keys.

struct Keys {
    low: vec4<u32>,
    high: vec4<u32>,
}

// Pads where the row has ended, and nowhere else.
fn mask_keys(k: Keys, len: u32, eight: u32) -> Keys {
    let slot = eight * 8u;
    let low = vec4<u32>(slot, slot + 1u, slot + 2u, slot + 3u);
    let last = vec4<u32>(PAD_KEY - 1u);
    return Keys(
        select(vec4<u32>(PAD_KEY), min(k.low, last), low < vec4<u32>(len)),
        select(vec4<u32>(PAD_KEY), min(k.high, last), low + 4u < vec4<u32>(len)),
    );
}

fn ones(flags: vec4<bool>) -> u32 {
    let v = select(vec4<u32>(0u), vec4<u32>(1u), flags);
    return v.x + v.y + v.z + v.w;
}

fn count_zeros(k: Keys) -> u32 {
    return ones(k.low == vec4<u32>(0u)) + ones(k.high == vec4<u32>(0u));
}

// Keys up to the rule's limit; pads lie above every limit.
fn count_within(k: Keys, rule: RowRule) -> u32 {
    let limit = vec4<u32>(rule.key_limit);
    return select(0u, ones(k.low <= limit) + ones(k.high <= limit), rule.budget_mode == 3u);
}

// Keys below the threshold in the low half, equal ones in the high half.
fn count_keys(k: Keys, threshold: u32) -> u32 {
    let t = vec4<u32>(threshold);
    return (ones(k.low < t) + ones(k.high < t)) | ((ones(k.low == t) + ones(k.high == t)) << 16u);
}

// The next key comes to low.x. Loops over the eight keys stay rolled, their bound being a parameter: unrolled they are
// code that each workgroup runs once, and fetching it takes longer than running it.
fn rotated(k: Keys) -> Keys {
    return Keys(vec4<u32>(k.low.yzw, k.high.x), vec4<u32>(k.high.yzw, k.low.x));
}

// Bit i: slot i of the eight.
fn bits(low: vec4<bool>, high: vec4<bool>) -> u32 {
    let l = select(vec4<u32>(0u), vec4<u32>(1u, 2u, 4u, 8u), low);
    let h = select(vec4<u32>(0u), vec4<u32>(16u, 32u, 64u, 128u), high);
    return (l.x | l.y | l.z | l.w) | (h.x | h.y | h.z | h.w);
}

// The lowest set bits of a mask, at most that many.
fn lowest_bits(mask: u32, most: u32) -> u32 {
    var left = mask;
    for (var i = 0u; i < min(most, 8u); i++) {
        left &= left - min(left, 1u);
    }
    return mask ^ left;
}

// The first so many of the eight slots from `first_slot` on that lie below `end`.
fn slots_below(first_slot: u32, end: u32) -> u32 {
    return (1u << min(max(end, first_slot) - first_slot, 8u)) - 1u;
}

// Writes what eight slots contribute to the row's lists, given the keys below and equal to the threshold before them.
// Ranks, and places in each list, are consecutive, so that a slot costs a bit and a store.
fn emit_keys(local_row: u32, s: SelectRow, k: Keys, first_slot: u32, below: u32, equal: u32) {
    let list_base = local_row * params.lists_stride;
    let t = vec4<u32>(s.threshold);
    let valid = slots_below(first_slot, s.row.len);
    let front = slots_below(first_slot, s.budget);
    let rank = below + min(equal, s.num_ties);
    var kept = bits(k.low < t, k.high < t);
    let ties = bits(k.low == t, k.high == t) & valid;
    if ties != 0u {
        kept |= lowest_bits(ties, s.num_ties - min(equal, s.num_ties));
    }
    let dropped = valid & ~kept;
    if params.order == POSITIONAL {
        if dropped != 0u && rank == first_slot {
            note_first_moved(local_row, first_slot + firstTrailingBit(dropped));
        }
        var place = list_base + rank;
        for (var left = kept; left != 0u; left &= left - 1u) {
            let slot = first_slot + firstTrailingBit(left);
            lists[place] = slot;
            lists[place + params.staged_offset] = position_of(s.row, slot);
            place++;
        }
        return;
    }
    note_kept(local_row, s, first_slot, kept);
    let rank_of_movers = rank + countOneBits(kept & front);
    if s.budget - min(first_slot, s.budget) < 8u && s.budget >= first_slot && s.budget < s.row.len {
        note_num_moved(local_row, s.budget - min(rank_of_movers, s.budget));
    }
    // Movers go to the end of the list, holes to its front. The bound keeps a row that exceeds the recorded max_len to
    // its own list.
    let last = list_base + params.order_stride - 1u;
    var place = list_base + first_slot - rank;
    for (var left = dropped & front; left != 0u; left &= left - 1u) {
        lists[min(place, last)] = first_slot + firstTrailingBit(left);
        place++;
    }
    place = list_base + s.row.len - s.budget + rank_of_movers;
    for (var left = kept & ~front; left != 0u; left &= left - 1u) {
        lists[min(place, last)] = first_slot + firstTrailingBit(left);
        place++;
    }
}

// Emits the eight keys of each invocation, the workgroup's first slot being `first_slot`.
fn emit_tile(index: u32, local_row: u32, s: SelectRow, k: Keys, first_slot: u32, below: u32, equal: u32) -> Scanned {
    let scanned = exclusive_scan(index, count_keys(k, s.threshold));
    if s.row.active_row {
        let before = vec2<u32>(below + (scanned.before & 0xffffu), equal + (scanned.before >> 16u));
        emit_keys(local_row, s, k, first_slot + index * 8u, before.x, before.y);
    }
    return scanned;
}
