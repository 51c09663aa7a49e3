// Lane sums by subgroup shuffles. LANES <= subgroup_min_size. The invocation's number is made of the subgroup built-ins,
// so nothing is assumed of how local_invocation_index maps to lanes.

fn reduce(sums: vec4<f32>, nan: u32, index: u32) -> Reduced {
    var s = sums;
    var f = nan;
    if LANES > 16u {
        s += subgroupShuffleXor(s, 16u);
        f |= subgroupShuffleXor(f, 16u);
    }
    if LANES > 8u {
        s += subgroupShuffleXor(s, 8u);
        f |= subgroupShuffleXor(f, 8u);
    }
    if LANES > 4u {
        s += subgroupShuffleXor(s, 4u);
        f |= subgroupShuffleXor(f, 4u);
    }
    if LANES > 2u {
        s += subgroupShuffleXor(s, 2u);
        f |= subgroupShuffleXor(f, 2u);
    }
    s += subgroupShuffleXor(s, 1u);
    f |= subgroupShuffleXor(f, 1u);
    return Reduced(s, f);
}
