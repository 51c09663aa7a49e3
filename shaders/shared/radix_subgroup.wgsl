// Entry points of the radix selector that number invocations by the subgroup built-ins, for scan_subgroup.wgsl.

@compute @workgroup_size(WG_SIZE)
fn radix_row(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    let index = set_lane(subgroup_id, subgroup_size, subgroup_invocation_id);
    radix_row_of(wg.y, index);
}

@compute @workgroup_size(WG_SIZE)
fn count_digits(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    let index = set_lane(subgroup_id, subgroup_size, subgroup_invocation_id);
    count_digits_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn collect(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    let index = set_lane(subgroup_id, subgroup_size, subgroup_invocation_id);
    collect_of(wg, index);
}

@compute @workgroup_size(WG_SIZE)
fn emit(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
    let index = set_lane(subgroup_id, subgroup_size, subgroup_invocation_id);
    emit_of(wg, index);
}
