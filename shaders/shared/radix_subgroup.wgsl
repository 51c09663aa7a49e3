// The radix selector with subgroups: entry points that number invocations by the subgroup built-ins, and the threshold of
// a row in registers by digits of two bits, counted by subgroup sums: sixteen rounds of one barrier each.

// Two buffers of one sum a subgroup of at least four, so that a round may write while a slow invocation still reads the round before.
var<workgroup> round_sums: array<vec2<u32>, WG_SIZE / 2u>;

fn digits_at(key: u32, shift: u32, found: u32, above: u32) -> vec2<u32> {
    let digit = (key >> shift) & 3u;
    let counted = ((key ^ found) & above) == 0u;
    let low = select(select(0u, 1u, digit == 0u), 1u << 16u, digit == 1u);
    return select(vec2<u32>(0u), vec2<u32>(low, u32(digit == 2u)), counted);
}

fn row_threshold(index: u32, q0: vec4<u32>, q1: vec4<u32>, wanted: u32) -> Found {
    var found = 0u;
    var above = 0u;
    var rank = wanted;
    for (var round = 0u; round < 16u; round++) {
        let shift = 30u - 2u * round;
        var counts = vec2<u32>(0u);
        for (var i = 0u; i < 4u; i++) {
            counts += digits_at(q0[i], shift, found, above) + digits_at(q1[i], shift, found, above);
        }
        let sums = (round & 1u) * (WG_SIZE / 4u);
        let subgroup_sum = subgroupAdd(counts);
        if lane == 0u {
            round_sums[sums + subgroup] = subgroup_sum;
        }
        workgroupBarrier();
        var total = vec2<u32>(0u);
        for (var i = lane; i < WG_SIZE / subgroup_len; i += subgroup_len) {
            total += round_sums[sums + i];
        }
        total = subgroupAdd(total);
        let upto0 = total.x & 0xffffu;
        let upto1 = upto0 + (total.x >> 16u);
        let upto2 = upto1 + total.y;
        let digit = u32(rank >= upto0) + u32(rank >= upto1) + u32(rank >= upto2);
        rank -= select(select(select(upto2, upto1, digit == 2u), upto0, digit == 1u), 0u, digit == 0u);
        found |= digit << shift;
        above |= 3u << shift;
    }
    return Found(found, rank);
}

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
