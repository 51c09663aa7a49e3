// Fill: the j-th mover goes to the j-th hole, four of them an invocation from `first` on, LANES invocations to a row, and what
// they leave of a workgroup idle. The module gives the slots: hole_at, mover_at.

fn fill_keys(row: u32, first: u32, index: u32, len: u32, num_moved: u32) {
    let groups = WG_SIZE / KEY_LANES;
    let lane = index % KEY_LANES;
    let j = first + index / KEY_LANES;
    if j >= num_moved || index >= groups * KEY_LANES {
        return;
    }
    let last = num_moved - 1u;
    let j1 = min(j + groups, last);
    let j2 = min(j + 2u * groups, last);
    let j3 = min(j + 3u * groups, last);
    let place = place_of_row(params.keys, row);
    let s0 = token_base(params.keys, place, mover_at(row, len, num_moved, j));
    let s1 = token_base(params.keys, place, mover_at(row, len, num_moved, j1));
    let s2 = token_base(params.keys, place, mover_at(row, len, num_moved, j2));
    let s3 = token_base(params.keys, place, mover_at(row, len, num_moved, j3));
    let d0 = token_base(params.keys, place, hole_at(row, j));
    let d1 = token_base(params.keys, place, hole_at(row, j1));
    let d2 = token_base(params.keys, place, hole_at(row, j2));
    let d3 = token_base(params.keys, place, hole_at(row, j3));
    for (var c = lane; c < KEY_CHUNKS; c += KEY_LANES) {
        let c0 = load_key_chunk(s0, c);
        let c1 = load_key_chunk(s1, c);
        let c2 = load_key_chunk(s2, c);
        let c3 = load_key_chunk(s3, c);
        store_key_chunk(d0, c, c0);
        if j + groups <= last {
            store_key_chunk(d1, c, c1);
        }
        if j + 2u * groups <= last {
            store_key_chunk(d2, c, c2);
        }
        if j + 3u * groups <= last {
            store_key_chunk(d3, c, c3);
        }
    }
}

fn fill_values(row: u32, first: u32, index: u32, len: u32, num_moved: u32) {
    let groups = WG_SIZE / VALUE_LANES;
    let lane = index % VALUE_LANES;
    let j = first + index / VALUE_LANES;
    if j >= num_moved || index >= groups * VALUE_LANES {
        return;
    }
    let last = num_moved - 1u;
    let j1 = min(j + groups, last);
    let j2 = min(j + 2u * groups, last);
    let j3 = min(j + 3u * groups, last);
    let place = place_of_row(params.values, row);
    let s0 = token_base(params.values, place, mover_at(row, len, num_moved, j));
    let s1 = token_base(params.values, place, mover_at(row, len, num_moved, j1));
    let s2 = token_base(params.values, place, mover_at(row, len, num_moved, j2));
    let s3 = token_base(params.values, place, mover_at(row, len, num_moved, j3));
    let d0 = token_base(params.values, place, hole_at(row, j));
    let d1 = token_base(params.values, place, hole_at(row, j1));
    let d2 = token_base(params.values, place, hole_at(row, j2));
    let d3 = token_base(params.values, place, hole_at(row, j3));
    for (var c = lane; c < VALUE_CHUNKS; c += VALUE_LANES) {
        let c0 = load_value_chunk(s0, c);
        let c1 = load_value_chunk(s1, c);
        let c2 = load_value_chunk(s2, c);
        let c3 = load_value_chunk(s3, c);
        store_value_chunk(d0, c, c0);
        if j + groups <= last {
            store_value_chunk(d1, c, c1);
        }
        if j + 2u * groups <= last {
            store_value_chunk(d2, c, c2);
        }
        if j + 3u * groups <= last {
            store_value_chunk(d3, c, c3);
        }
    }
}

// Part `part` of `num_parts`.
fn fill_keys_part(local_row: u32, part: u32, num_parts: u32, index: u32, len: u32, num_moved: u32) {
    let unit = WG_SIZE / KEY_LANES * 4u;
    for (var first = part * unit; first < num_moved; first += num_parts * unit) {
        fill_keys(local_row, first, index, len, num_moved);
    }
}

fn fill_values_part(local_row: u32, part: u32, num_parts: u32, index: u32, len: u32, num_moved: u32) {
    let unit = WG_SIZE / VALUE_LANES * 4u;
    for (var first = part * unit; first < num_moved; first += num_parts * unit) {
        fill_values(local_row, first, index, len, num_moved);
    }
}
