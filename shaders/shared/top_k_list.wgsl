// From the staged slots of a tile to the row's lists. Places in each list are consecutive.

// The whole workgroup calls it.
fn emit_tile(index: u32, local_row: u32, s: SelectRow, k: Keys, tile_first: u32, below: u32, equal: u32) -> Scanned {
    let tile = stage_tile(index, local_row, s, k, tile_first, below, equal);
    let list_base = local_row * params.lists_stride;
    let last = params.order_stride - 1u; // keeps a row that exceeds the recorded max_len to its own list
    if IN_ORDER {
        for (var round = 0u; round < params.keys_held; round++) {
            let i = round * WG_SIZE + index;
            if i < tile.num_kept {
                let slot = tile_first + staged(i);
                let place = list_base + min(tile.rank + i, last);
                lists[place] = slot;
                lists[place + params.staged_offset] = position_of(s.row, slot);
            }
        }
        return tile.scanned;
    }
    let tile_end = min(tile_first + 8u * WG_SIZE, s.row.len);
    let holds_budget = tile_first <= s.budget && s.budget < tile_end;
    let kept_front = select(select(0u, tile.num_kept, tile_first < s.budget), wg_kept_front, holds_budget);
    let slots_front = min(max(s.budget, tile_first), max(tile_end, tile_first)) - tile_first;
    let num_holes = select(0u, slots_front - min(kept_front, slots_front), s.row.active_row);
    let num_movers = tile.num_kept - min(kept_front, tile.num_kept);
    // Holes go to the front of the list, movers to its end.
    for (var round = 0u; round < params.keys_held; round++) {
        let i = round * WG_SIZE + index;
        if i < num_holes + num_movers {
            let rank = kept_front + i - num_holes;
            let is_hole = i < num_holes;
            let place = select(s.row.len - s.budget + tile.rank + rank, tile_first - tile.rank + i, is_hole);
            lists[list_base + min(place, last)] = tile_first + staged(select(num_staged() - 1u - rank, i, is_hole));
        }
    }
    return tile.scanned;
}
