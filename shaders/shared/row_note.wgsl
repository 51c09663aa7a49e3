// What the score notes of a row behind its order keys, for move_row, whose last workgroup changes the state that the others
// would read: tokens, 0 of an inactive row; compacted prefix; tokens seen; 1 if the length exceeded the capacity.

const NOTE_WORDS: u32 = 4u;
