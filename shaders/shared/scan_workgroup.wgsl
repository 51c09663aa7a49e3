// Exclusive prefix sum over a workgroup through workgroup memory in two levels.

const SCAN_GROUP: u32 = 16u;

var<workgroup> group_sums: array<u32, WG_SIZE / SCAN_GROUP>;

// Two scans need a barrier between them.
fn exclusive_scan(index: u32, value: u32) -> Scanned {
    scan_sums[index] = value;
    workgroupBarrier();
    let group = index / SCAN_GROUP;
    var before = 0u;
    for (var i = group * SCAN_GROUP; i < index; i++) {
        before += scan_sums[i];
    }
    if index % SCAN_GROUP == SCAN_GROUP - 1u {
        group_sums[group] = before + value;
    }
    workgroupBarrier();
    var total = 0u;
    for (var g = 0u; g < WG_SIZE / SCAN_GROUP; g++) {
        if g == group {
            before += total;
        }
        total += group_sums[g];
    }
    return Scanned(before, total);
}
