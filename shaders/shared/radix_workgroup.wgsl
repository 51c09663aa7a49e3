// Entry points of radix.wgsl without subgroups.

@compute @workgroup_size(WG_SIZE)
fn radix_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    select_whole_row(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn count_digits(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    count_tile(wg, index);
}
