// Entry points that number invocations by local_invocation_index.

@compute @workgroup_size(WG_SIZE)
fn radix_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    radix_row_of(wg.y, index);
}

@compute @workgroup_size(WG_SIZE)
fn histogram_0(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    histogram_0_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn histogram_1(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    histogram_1_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn histogram_2(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    histogram_2_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn count(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    count_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn emit(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    emit_of(wg, index);
}
