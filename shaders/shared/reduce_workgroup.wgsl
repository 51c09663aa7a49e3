// Lane sums through workgroup memory: the same tree as the butterfly of reduce_subgroup.wgsl, so the same bits.

var<workgroup> lane_sums: array<f32, WG_SIZE * 4u>;
var<workgroup> lane_nans: array<u32, WG_SIZE>;

fn reduce(sums: vec4<f32>, nan: u32, index: u32) -> Reduced {
    workgroupBarrier(); // the sums of the round before have been read
    lane_sums[index] = sums.x;
    lane_sums[WG_SIZE + index] = sums.y;
    lane_sums[2u * WG_SIZE + index] = sums.z;
    lane_sums[3u * WG_SIZE + index] = sums.w;
    lane_nans[index] = nan;
    workgroupBarrier();
    let lane = index % LANES;
    let group = index - lane;
    var s = sums;
    var f = nan;
    // One invocation of the group folds one token's lanes, in place: no other touches them.
    for (var token = lane; token < 4u; token += LANES) {
        let base = token * WG_SIZE + group;
        for (var d = LANES / 2u; d > 0u; d >>= 1u) {
            for (var i = 0u; i < d; i++) {
                lane_sums[base + i] += lane_sums[base + i + d];
            }
        }
        // FXC refuses to store to an element that it does not know.
        s = select(s, vec4<f32>(lane_sums[base]), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(token));
    }
    if lane < 4u {
        f = 0u;
        for (var i = 0u; i < LANES; i++) {
            f |= lane_nans[group + i];
        }
    }
    return Reduced(s, f);
}

fn fold(sums: vec4<f32>, nan: u32, index: u32) -> Folded {
    let reduced = reduce(sums, nan, index);
    let lane = index % LANES;
    let pair = vec2<f32>(component(reduced.sums, lane), component(reduced.sums, lane + 2u));
    return Folded(pair, reduced.nan, lane);
}
