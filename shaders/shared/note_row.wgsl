// Writes the note of shared/row_note.wgsl. One invocation of a row does.
fn write_note(local_row: u32, r: Row) {
    let note = (local_row + 1u) * params.order_stride - NOTE_WORDS;
    order_keys[note] = r.len;
    order_keys[note + 1u] = r.compacted;
    order_keys[note + 2u] = r.num_seen;
    order_keys[note + 3u] = u32(r.over_capacity);
}
