// Entry points of radix_long.wgsl: an invocation's number by subgroup built-ins, as scan_subgroup.wgsl asks.

@compute @workgroup_size(WG_SIZE)
fn collect(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    collect_tiles(wg, num.x, enter(subgroup, len, lane_ix));
}

@compute @workgroup_size(WG_SIZE)
fn emit(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    emit_tiles(wg, num.x, enter(subgroup, len, lane_ix));
}

@compute @workgroup_size(WG_SIZE)
fn settle(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    settle_row(wg.y, enter(subgroup, len, lane_ix));
}
