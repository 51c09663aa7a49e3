// What every score stage does with its rows and order keys: reads a row, writes keys, counts their first digits.

var<workgroup> bins: array<atomic<u32>, NUM_BINS>;
var<workgroup> num_protected: atomic<u32>;

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
    if HISTOGRAM {
        atomicAdd(&bins[first_digit(key, params.digit_shift, params.digit_window)], 1u);
        if key == 0u {
            atomicAdd(&num_protected, 1u);
        }
    }
}

fn start_histogram(index: u32) {
    if HISTOGRAM {
        for (var b = index; b < NUM_BINS; b += WG_SIZE) {
            atomicStore(&bins[b], 0u);
        }
        if index == 0u {
            atomicStore(&num_protected, 0u);
        }
        workgroupBarrier();
    }
}

// Adds the workgroup's counts to the row's.
fn flush_histogram(wg: vec3<u32>, index: u32) {
    if HISTOGRAM {
        workgroupBarrier();
        let base = wg.y * params.histogram_stride;
        for (var b = index; b < NUM_BINS; b += WG_SIZE) {
            let count = atomicLoad(&bins[b]);
            if count > 0u {
                atomicAdd(&histogram[base + b], count);
            }
        }
        if index == 0u && atomicLoad(&num_protected) > 0u {
            atomicAdd(&histogram[base + PROTECTED_COUNT_IX], atomicLoad(&num_protected));
        }
    }
}
