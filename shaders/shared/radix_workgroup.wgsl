// Entry points of the radix selector that number invocations by local_invocation_index.

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
