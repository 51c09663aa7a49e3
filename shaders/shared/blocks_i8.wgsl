// A scale for each row: a word of f32, then a signed byte an element. Blocks are 32 elements, the last may be shorter.
// Scales below 2^-63 count as zero, so that their squares are not subnormal.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;

override KEY_WORDS: u32 = 33u;

// Beyond the row there are no quants.
fn squares_of_word(base: u32, w: u32) -> u32 {
    return select(0u, squares_of_bytes(keys[base + min(w, KEY_WORDS - 1u)]), w < KEY_WORDS);
}

fn load_key_chunk(base: u32, block_ix: u32) -> vec4<u32> {
    let scale = keys[base];
    let counted = select(scale, 0u, (scale & 0x7fffffffu) < 0x20000000u);
    let first = 1u + block_ix * 8u;
    let sum = squares_of_word(base, first) + squares_of_word(base, first + 1u)
        + squares_of_word(base, first + 2u) + squares_of_word(base, first + 3u)
        + squares_of_word(base, first + 4u) + squares_of_word(base, first + 5u)
        + squares_of_word(base, first + 6u) + squares_of_word(base, first + 7u);
    return vec4<u32>(sum, counted, 0u, 0u);
}
