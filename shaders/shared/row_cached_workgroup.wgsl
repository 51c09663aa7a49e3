// Entry point of row_cached.wgsl without subgroups.

@compute @workgroup_size(WG_SIZE)
fn compress_cached(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    compress(wg, index);
}
