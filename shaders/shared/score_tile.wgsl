// A tile of tokens a workgroup.

fn score_tile(wg: vec3<u32>, index: u32) {
    let r = scored_row(wg.y);
    if wg.x == 0u && index == 0u {
        note_row(wg.y, r);
    }
    start_histogram(index);
    score_tokens(wg, index, r, place_of_row(r), first_slot(r) + wg.x * TILE, TILE, end_of(r));
    flush_histogram(wg, index);
}
