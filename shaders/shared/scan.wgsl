// Exclusive prefix sum over a workgroup, without subgroups. A few invocations rake over the values of all, so that the
// others spend no instructions on it.

struct Scanned {
    before: u32, // sum of the values of lower invocations
    total: u32,  // sum of all
}

const RAKES: u32 = 16u;

// Of each invocation its value, then what comes before it.
var<workgroup> scan_values: array<u32, WG_SIZE>;
var<workgroup> scan_sums: array<u32, RAKES>;
var<workgroup> scan_total: u32;

// One scan may follow another: an invocation's own value is all that it has still to read when it writes the next.
fn exclusive_scan(index: u32, value: u32) -> Scanned {
    scan_values[index] = value;
    workgroupBarrier();
    let per_rake = WG_SIZE / RAKES;
    if index < RAKES {
        var sum = 0u;
        for (var i = index * per_rake; i < (index + 1u) * per_rake; i++) {
            sum += scan_values[i];
        }
        scan_sums[index] = sum;
    }
    workgroupBarrier();
    if index < RAKES {
        var before = 0u;
        for (var rake = 0u; rake < RAKES; rake++) {
            before += select(0u, scan_sums[rake], rake < index);
        }
        for (var i = index * per_rake; i < (index + 1u) * per_rake; i++) {
            let own = scan_values[i];
            scan_values[i] = before;
            before += own;
        }
        if index == RAKES - 1u {
            scan_total = before;
        }
    }
    workgroupBarrier();
    return Scanned(scan_values[index], scan_total);
}
