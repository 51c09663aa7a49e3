// Exclusive prefix sum over a workgroup through workgroup memory; the last slot of scan_sums keeps the total.

fn exclusive_scan(index: u32, value: u32) -> u32 {
    scan_sums[index] = value;
    workgroupBarrier();
    for (var d = 1u; d < WG_SIZE; d <<= 1u) {
        var other = 0u;
        if index >= d {
            other = scan_sums[index - d];
        }
        workgroupBarrier();
        scan_sums[index] += other;
        workgroupBarrier();
    }
    return scan_sums[index] - value;
}

// The sum of the last scan. All invocations must have passed a barrier before the next scan starts.
fn scan_total() -> u32 {
    return scan_sums[WG_SIZE - 1u];
}
