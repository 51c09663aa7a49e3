// Emission: from a row's threshold to its slots, in slot order, by prefix sums. An invocation holds eight keys of a tile. The
// module gives IN_ORDER, BY_TILE, and workgroup memory to stage as many slots of 16 bits as a tile has: clear_staged, stage,
// staged and num_staged; without BY_TILE as many as a row has, whose tiles come in order.

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

// Keys up to a limit; pads lie above every limit.
fn count_within(k: Keys, key_limit: u32) -> u32 {
    let limit = vec4<u32>(key_limit);
    return ones(k.low <= limit) + ones(k.high <= limit);
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

// Stages the slots of a mask, counted from the tile's first, at places that go up or down from the first.
fn stage_slots(mask: u32, first: u32, first_place: u32, step: u32) {
    var place = first_place;
    for (var left = mask; left != 0u; left &= left - 1u) {
        stage(place, first + firstTrailingBit(left));
        place += step;
    }
}

// Kept slots of the tile below the budget, where the budget lies in the tile.
var<workgroup> wg_kept_front: u32;

// What a tile keeps.
struct StagedTile {
    scanned: Scanned, // keys below and equal to the threshold, as count_keys has them
    rank: u32,        // of its first kept slot
    num_kept: u32,
}

// Stages in workgroup memory, counted from the tile's first slot, or the row's without BY_TILE, what a tile of eight keys an
// invocation keeps, given the keys below and equal to the threshold before the tile, whose first slot is `tile_first`: with
// IN_ORDER the kept slots; else holes upwards from the front, and downwards from the end, after as many places as the tile
// keeps below the budget, movers. The whole workgroup calls it; ends at a barrier.
fn stage_tile(index: u32, local_row: u32, s: SelectRow, k: Keys, tile_first: u32, below: u32, equal: u32) -> StagedTile {
    let origin = select(0u, tile_first, BY_TILE);
    if tile_first == origin {
        clear_staged(index);
    }
    let scanned = exclusive_scan(index, count_keys(k, s.threshold));
    let equal_before = equal + (scanned.before >> 16u);
    let tile_rank = below + min(equal, s.num_ties);
    let origin_rank = select(0u, tile_rank, BY_TILE);
    let rank = below + (scanned.before & 0xffffu) + min(equal_before, s.num_ties);
    let end_rank = below + (scanned.total & 0xffffu) + min(equal + (scanned.total >> 16u), s.num_ties);
    // Of an empty row the pads are no keys.
    let num_kept = select(0u, min(end_rank - tile_rank, s.row.len), s.row.active_row);
    let first_slot = tile_first + index * 8u;
    let t = vec4<u32>(s.threshold);
    let valid = select(0u, slots_below(first_slot, s.row.len), s.row.active_row);
    var kept = bits(k.low < t, k.high < t) & valid;
    let ties = bits(k.low == t, k.high == t) & valid;
    if ties != 0u {
        kept |= lowest_bits(ties, s.num_ties - min(equal_before, s.num_ties));
    }
    let dropped = valid & ~kept;
    let staged_tile = StagedTile(scanned, tile_rank, num_kept);
    if IN_ORDER {
        if dropped != 0u && rank == first_slot {
            note_first_moved(local_row, first_slot + firstTrailingBit(dropped));
        }
        stage_slots(kept, first_slot - origin, rank - origin_rank, 1u);
        workgroupBarrier();
        return staged_tile;
    }
    note_kept(local_row, s, first_slot, kept);
    // Together they are no more than the tile, or the row.
    let front = slots_below(first_slot, s.budget);
    let rank_of_movers = rank + countOneBits(kept & front);
    stage_slots(dropped & front, first_slot - origin, first_slot - origin - (rank - origin_rank), 1u);
    stage_slots(kept & ~front, first_slot - origin, num_staged() - 1u - (rank_of_movers - origin_rank), 0xffffffffu);
    if s.budget >= first_slot && s.budget - first_slot < 8u && s.budget < s.row.len {
        note_num_moved(local_row, s.budget - min(rank_of_movers, s.budget));
        wg_kept_front = rank_of_movers - tile_rank;
    }
    workgroupBarrier();
    return staged_tile;
}
