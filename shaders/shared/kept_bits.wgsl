// Fill: a word for each eight slots of the front, bit i for slot i, so that the state's update knows which were kept.

fn note_kept(local_row: u32, s: SelectRow, first_slot: u32, kept: u32) {
    if first_slot < s.budget {
        lists[local_row * params.lists_stride + params.staged_offset + first_slot / 8u] = kept;
    }
}
