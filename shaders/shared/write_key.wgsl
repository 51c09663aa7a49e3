// What every score stage does with its rows and order keys: reads a row, writes keys, counts their first digits.

// The row as this stage sees it: an inactive sequence is not read.
fn scored_row(local_row: u32) -> Row {
    let run_row = params.first_row + local_row;
    let layer_row = divided(run_row, params.state.rows_per_layer);
    var r = load_row(params.state, params.layer + layer_row.quotient, layer_row.rest);
    if !r.active_row {
        r.len = 0u;
    }
    return r;
}

fn place_of_row(r: Row) -> Place {
    return place_of(params.keys, r.layer - params.layer, r.row, params.state.num_kv_heads);
}

fn write_key(local_row: u32, slot: u32, key: u32) {
    order_keys[local_row * params.order_stride + slot] = key;
    count_key(key);
}
