// A tile of tokens a workgroup.

fn score_tile(wg: vec3<u32>, index: u32) {
    let row = params.first_row + wg.y;
    let r = scored_row(row);
    start_histogram(index);
    score_tokens(wg, index, r, row, place_of_row(row), first_slot(r, row) + wg.x * TILE, TILE, end_of(r));
    flush_histogram(wg, index);
}
