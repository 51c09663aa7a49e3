// Entry points of radix.wgsl: an invocation's number by subgroup built-ins, as scan_subgroup.wgsl asks.

@compute @workgroup_size(WG_SIZE)
fn radix_row(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    select_whole_row(wg, enter(subgroup, len, lane_ix));
}

@compute @workgroup_size(WG_SIZE)
fn count_digits(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) len: u32,
    @builtin(subgroup_invocation_id) lane_ix: u32,
) {
    count_tile(wg, enter(subgroup, len, lane_ix));
}
