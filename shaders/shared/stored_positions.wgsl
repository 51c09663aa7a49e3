// Positions of kept slots go where they are kept.

// Where positions are stored: those below the compacted prefix are.
fn first_unstored(r: Row) -> u32 {
    return r.compacted;
}

fn store_position(local_row: u32, r: Row, slot: u32, position: u32) {
    positions[r.positions_base + slot] = position;
}
