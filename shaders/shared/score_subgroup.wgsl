// The entry point of a score: an invocation's number by subgroup built-ins, as reduce_subgroup.wgsl asks.
// Rows come first in the grid: see ScoreStage::record.

@compute @workgroup_size(WG_SIZE)
fn score(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_len: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    score_tile(wg.yxz, num.y, subgroup * subgroup_len + lane);
}
