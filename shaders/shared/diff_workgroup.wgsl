// The sums through workgroup memory; `reduce` of reduce_workgroup.wgsl leaves a token's sum where its first lane began.

fn reduce_all(sums4: vec4<f32>, index: u32) -> vec4<f32> {
    let reduced = reduce(sums4, 0u, index);
    workgroupBarrier();
    let group = index - index % LANES;
    return vec4<f32>(
        lane_sums[group],
        lane_sums[WG_SIZE + group],
        lane_sums[2u * WG_SIZE + group],
        lane_sums[3u * WG_SIZE + group],
    );
}

@compute @workgroup_size(WG_SIZE)
fn sum_keys(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    sum_tile(wg.yxz, num.y, index);
}
