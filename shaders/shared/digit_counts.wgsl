// First digits counted as keys are made, a workgroup's in `bins`, then added to the row's. The module gives HISTOGRAM, whether
// it counts, and histogram.

var<workgroup> bins: array<atomic<u32>, NUM_BINS>;
var<workgroup> num_protected: atomic<u32>;

fn count_key(key: u32) {
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
