// Exclusive prefix sum over a workgroup by subgroup shuffles, which are one instruction each; the driver of an H100 makes of a
// subgroup's sum a routine for any set of lanes, and such routines gave wrong sums there. All is in control flow that is
// uniform when it runs (not by what a browser can know, where subgroups are not used), and barriers bring a subgroup's lanes
// together again before each shuffle among all of them.

struct Scanned {
    before: u32, // sum of the values of lower invocations
    total: u32,  // sum of all
}

const LEAST_SUBGROUP: u32 = 4u;

var<private> lane: u32;
var<private> subgroup_ix: u32;
var<private> subgroup_len: u32;
var<workgroup> scan_sums: array<u32, WG_SIZE / LEAST_SUBGROUP>;

// The invocation's number, by which lower invocations are lower lanes or in lower subgroups.
fn enter(subgroup: u32, len: u32, lane_ix: u32) -> u32 {
    lane = lane_ix;
    subgroup_ix = subgroup;
    subgroup_len = len;
    return subgroup * len + lane_ix;
}

fn step_up(value: u32, lanes: u32) -> u32 {
    return value + select(0u, subgroupShuffleUp(value, lanes), lane >= lanes);
}

fn subgroup_scan(value: u32) -> u32 {
    var s = step_up(step_up(value, 1u), 2u);
    if subgroup_len > 4u {
        s = step_up(s, 4u);
    }
    if subgroup_len > 8u {
        s = step_up(s, 8u);
    }
    if subgroup_len > 16u {
        s = step_up(s, 16u);
    }
    if subgroup_len > 32u {
        s = step_up(s, 32u);
    }
    if subgroup_len > 64u {
        s = step_up(s, 64u);
    }
    return s;
}

// Begins with a barrier: for the shuffles, and so that one scan may follow another.
fn exclusive_scan(index: u32, value: u32) -> Scanned {
    workgroupBarrier();
    let upto = subgroup_scan(value);
    if lane == subgroup_len - 1u {
        scan_sums[subgroup_ix] = upto;
    }
    workgroupBarrier();
    let num_subgroups = WG_SIZE >> firstTrailingBit(subgroup_len); // a quotient, in fewer instructions
    var before = upto - value;
    var total = 0u;
    for (var first = 0u; first < num_subgroups; first += subgroup_len) {
        let ix = first + lane;
        let sums = subgroup_scan(select(0u, scan_sums[min(ix, num_subgroups - 1u)], ix < num_subgroups));
        let lower = clamp(subgroup_ix, first, first + subgroup_len) - first;
        before += select(0u, subgroupShuffle(sums, max(lower, 1u) - 1u), lower > 0u);
        total += subgroupShuffle(sums, subgroup_len - 1u);
    }
    return Scanned(before, total);
}
