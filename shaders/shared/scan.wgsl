// Exclusive prefix sum over a workgroup, in two levels of SCAN_GROUP invocations. Without subgroups: a subgroup sum is
// whole only where the subgroup has reconverged, which nothing promises after divergent code (seen wrong on an H100).

struct Scanned {
    before: u32, // sum of the values of lower invocations
    total: u32,  // sum of all
}

var<workgroup> scan_values: array<u32, WG_SIZE>;
var<workgroup> scan_groups: array<u32, WG_SIZE / SCAN_GROUP>;

// One scan may follow another: whoever writes for the next has read all of this one's that is written before a barrier.
fn exclusive_scan(index: u32, value: u32) -> Scanned {
    scan_values[index] = value;
    workgroupBarrier();
    let group = index / SCAN_GROUP;
    let first = group * SCAN_GROUP;
    var before = 0u;
    for (var i = 0u; i < SCAN_GROUP; i++) {
        let other = scan_values[first + i];
        before += select(0u, other, first + i < index);
    }
    if index - first == SCAN_GROUP - 1u {
        scan_groups[group] = before + value;
    }
    workgroupBarrier();
    var total = 0u;
    for (var g = 0u; g < WG_SIZE / SCAN_GROUP; g++) {
        let sum = scan_groups[g];
        before += select(0u, sum, g < group);
        total += sum;
    }
    return Scanned(before, total);
}
