// Entry points of radix_long.wgsl without subgroups.

@compute @workgroup_size(WG_SIZE)
fn collect(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    collect_tiles(wg, num.x, index);
}

@compute @workgroup_size(WG_SIZE)
fn emit(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    emit_tiles(wg, num.x, index);
}

@compute @workgroup_size(WG_SIZE)
fn settle(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    settle_row(wg.y, index);
}
