// The entry point of a score: an invocation's number whatever its subgroups.
// Rows come first in the grid: see ScoreStage::record.

@compute @workgroup_size(WG_SIZE)
fn score(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) num: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    score_tile(wg.yxz, num.y, index);
}
