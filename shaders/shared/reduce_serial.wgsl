// A token an invocation, for devices whose lanes run on a CPU, where neither barriers nor coalescing pay. The lanes of the
// definition are summed one after the other and added in the same tree, so the bits are the same.

var<private> lane_sums: array<f32, 32>;

fn score_tokens(wg: vec3<u32>, index: u32, r: Row, row: u32, place: Place, first: u32, span: u32, end: u32) {
    for (var slot = first + index; slot < min(end, first + span); slot += WG_SIZE) {
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
}
