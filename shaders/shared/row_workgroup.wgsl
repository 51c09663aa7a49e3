// Entry points of row.wgsl: an invocation's number whatever its subgroups.

@compute @workgroup_size(WG_SIZE)
fn compress_row(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    compress(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn move_row(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    move_part(wg, num.x, index);
}
