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

// The same sums, each in one lane: at the distance of half the lanes a lane gives two tokens away for its share of the
// others, at that of a quarter one, and goes on with one. Both terms of a sum are those of `reduce`, and so are its bits.
fn fold(sums: vec4<f32>, nan: u32, index: u32) -> Folded {
    let lane = index % LANES;
    let upper = lane / (LANES / 2u);
    let gives_first = upper == 1u;
    var f = nan | subgroupShuffleXor(nan, LANES / 2u);
    let pair = select(sums.xz, sums.yw, gives_first)
        + subgroupShuffleXor(select(sums.yw, sums.xz, gives_first), LANES / 2u);
    if LANES == 2u {
        return Folded(pair, f, upper);
    }
    let quarter = max(LANES / 4u, 1u);
    let odd = lane / quarter % 2u;
    f |= subgroupShuffleXor(f, quarter);
    var s = select(pair.x, pair.y, odd == 1u) + subgroupShuffleXor(select(pair.y, pair.x, odd == 1u), quarter);
    if LANES > 16u {
        s += subgroupShuffleXor(s, 4u);
        f |= subgroupShuffleXor(f, 4u);
    }
    if LANES > 8u {
        s += subgroupShuffleXor(s, 2u);
        f |= subgroupShuffleXor(f, 2u);
    }
    if LANES > 4u {
        s += subgroupShuffleXor(s, 1u);
        f |= subgroupShuffleXor(f, 1u);
    }
    return Folded(vec2<f32>(s, 0.0), f, select(NO_TOKEN, upper + 2u * odd, lane % quarter == 0u));
}
