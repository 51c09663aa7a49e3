// Entry point of row_cached.wgsl: an invocation's number by subgroup built-ins, as scan_subgroup.wgsl asks.

@compute @workgroup_size(WG_SIZE)
fn compress_cached(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    compress(wg, enter(subgroup, len, lane_ix));
}
