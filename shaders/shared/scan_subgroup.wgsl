// Exclusive prefix sum over a workgroup by subgroup sums of integers, whose order does not matter. Invocations are numbered
// by the subgroup built-ins, so nothing is assumed of how local_invocation_index maps to lanes.

var<private> lane: u32;
var<private> subgroup: u32;
var<private> subgroup_len: u32;

// Two scans need a barrier between them.
fn exclusive_scan(index: u32, value: u32) -> Scanned {
    let inclusive = subgroupInclusiveAdd(value);
    if lane == subgroup_len - 1u {
        scan_sums[subgroup] = inclusive;
    }
    workgroupBarrier();
    var before = 0u;
    var total = 0u;
    for (var s = lane; s < WG_SIZE / subgroup_len; s += subgroup_len) {
        let sum = scan_sums[s];
        total += sum;
        before += select(0u, sum, s < subgroup);
    }
    return Scanned(subgroupAdd(before) + inclusive - value, subgroupAdd(total));
}

fn set_lane(subgroup_id: u32, subgroup_size: u32, subgroup_invocation_id: u32) -> u32 {
    lane = subgroup_invocation_id;
    subgroup = subgroup_id;
    subgroup_len = subgroup_size;
    return subgroup_id * subgroup_size + subgroup_invocation_id;
}
