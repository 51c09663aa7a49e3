// A token an invocation, for devices whose lanes run on a CPU, where neither barriers nor coalescing pay. The lanes of the
// definition are summed one after the other and added in the same tree, so the bits are the same.

var<private> lane_sums: array<f32, 32>;

@compute @workgroup_size(WG_SIZE)
fn score(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let row = params.first_row + wg.y;
    let r = scored_row(row);
    let place = place_of_row(row);
    start_histogram(index);
    let first = first_slot(r, row) + wg.x * TILE;
    for (var slot = first + index; slot < min(end_of(r), first + TILE); slot += WG_SIZE) {
        let base = token_base(params.keys, place, slot);
        var nan = 0u;
        for (var lane = 0u; lane < LANES; lane++) {
            var sum = 0.0;
            for (var c = lane; c < CHUNKS; c += LANES) {
                let chunk = load_key_chunk(base, c);
                sum = add_squares(chunk, sum);
                nan |= nan_bits(chunk);
            }
            lane_sums[lane] = sum;
        }
        for (var d = LANES / 2u; d > 0u; d >>= 1u) {
            for (var i = 0u; i < d; i++) {
                lane_sums[i] += lane_sums[i + d];
            }
        }
        write_score(wg, r, row, slot, lane_sums[0], nan != 0u);
    }
    flush_histogram(wg, index);
}
