// Scores of `span` tokens from `first` on, LANES invocations to a token and four tokens in flight an invocation; `fold`
// adds the lanes. Tokens from `end` on have none. The span is the same for the whole workgroup.

fn score_tokens(wg: vec3<u32>, index: u32, r: Row, place: Place, first: u32, span: u32, end: u32) {
    let lane = index % LANES;
    let tile_base = first + index / LANES * 4u;
    let last = max(end, 1u) - 1u;
    for (var offset = 0u; offset < span; offset += WG_SIZE / LANES * 4u) {
        let slot = tile_base + offset;
        var sums = vec4<f32>(0.0);
        var nan = 0u;
        if slot < end {
            let bases = token_bases(params.keys, place, slot, last);
            for (var c = lane; c < CHUNKS; c += LANES) {
                let c0 = load_key_chunk(bases.x, c);
                let c1 = load_key_chunk(bases.y, c);
                let c2 = load_key_chunk(bases.z, c);
                let c3 = load_key_chunk(bases.w, c);
                sums = vec4<f32>(
                    add_squares(c0, sums.x),
                    add_squares(c1, sums.y),
                    add_squares(c2, sums.z),
                    add_squares(c3, sums.w),
                );
                nan |= select(0u, 1u, nan_bits(c0) != 0u) | select(0u, 2u, nan_bits(c1) != 0u)
                    | select(0u, 4u, nan_bits(c2) != 0u) | select(0u, 8u, nan_bits(c3) != 0u);
            }
        }
        let folded = fold(sums, nan, index);
        let j = folded.first;
        if j < NO_TOKEN && slot + j < end {
            write_score(wg, r, slot + j, folded.sums.x, ((folded.nan >> j) & 1u) != 0u);
        }
        if LANES == 2u && slot + j + 2u < end {
            write_score(wg, r, slot + j + 2u, folded.sums.y, ((folded.nan >> (j + 2u)) & 1u) != 0u);
        }
    }
}
