// The sums by subgroup shuffles; every lane has the result of `reduce` of reduce_subgroup.wgsl.

fn reduce_all(sums4: vec4<f32>, index: u32) -> vec4<f32> {
    return reduce(sums4, 0u, index).sums;
}

@compute @workgroup_size(WG_SIZE)
fn sum_keys(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_len: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    sum_tile(wg.yxz, num.y, subgroup * subgroup_len + lane);
}
