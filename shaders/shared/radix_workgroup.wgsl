// The radix selector without subgroups: entry points that number invocations by local_invocation_index, and the threshold
// of a row in registers by digits of eight bits.

fn row_threshold(index: u32, q0: vec4<u32>, q1: vec4<u32>, wanted: u32) -> Found {
    var found = 0u;
    var above = 0u;
    var rank = wanted;
    for (var left = 4u; left > 0u; left--) {
        let shift = (left - 1u) * 8u;
        clear_bins(index, SMALL_BINS);
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            if ((q0[i] ^ found) & above) == 0u {
                atomicAdd(&bins[(q0[i] >> shift) & (SMALL_BINS - 1u)], 1u);
            }
            if ((q1[i] ^ found) & above) == 0u {
                atomicAdd(&bins[(q1[i] >> shift) & (SMALL_BINS - 1u)], 1u);
            }
        }
        workgroupBarrier();
        let next = narrow(index, SMALL_BINS, rank);
        found |= next.digit << shift;
        rank = next.rank;
        above |= (SMALL_BINS - 1u) << shift;
    }
    return Found(found, rank);
}

@compute @workgroup_size(WG_SIZE)
fn radix_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    radix_row_of(wg.y, index);
}

@compute @workgroup_size(WG_SIZE)
fn count_digits(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    count_digits_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn collect(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    collect_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn emit(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    emit_of(wg, index);
}
