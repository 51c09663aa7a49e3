// What a compression leaves in the cache state, of slots below a row's budget. The kernel's file says where the lists are
// and how norms move.

const POSITIONAL: u32 = 1u;

fn finish_slot(which: u32, list_base: u32, info: RowInfo, state_row: u32, j: u32) {
    let positions_base = params.state.positions_base + state_row * params.state.capacity;
    if params.order == POSITIONAL {
        positions[positions_base + j] = list_word(which, list_base + params.staged_offset + j);
        place_norm(positions_base + j, which, list_base + j);
        return;
    }
    if j >= info.compacted {
        let kept = list_word(which, list_base + params.staged_offset + j / 8u) >> (j % 8u);
        if (kept & 1u) != 0u {
            positions[positions_base + j] = info.num_seen - (info.len - j);
        }
    }
    if j < info.num_moved {
        let hole = list_word(which, list_base + j);
        let mover = list_word(which, list_base + info.len - info.num_moved + j);
        var position = info.num_seen - (info.len - mover);
        if mover < info.compacted {
            position = positions[positions_base + mover];
        }
        positions[positions_base + hole] = position;
        move_norm(positions_base + hole, positions_base + mover);
    }
}

fn finish_row(info: RowInfo, state_row: u32, layer: u32, num_scored: u32) {
    state_meta[params.state.lengths_base + state_row] = info.budget;
    state_meta[params.state.compacted_base + state_row] = info.budget;
    state_meta[params.state.scored_base + state_row] = num_scored;
    if info.status != 0u {
        atomicOr(&status[layer], info.status);
    }
}
