// ggml's q4_0: blocks of 18 bytes, an f16 scale and 32 nibbles that count from -8. Two blocks are 9 words; the second begins
// in the middle of the fifth. Which nibble is which element does not matter to a sum of squares.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;

// A nibble less 8 is a signed one, sixteen times it a signed byte.
fn squares_of_nibbles(word: u32) -> u32 {
    let signed = word ^ 0x88888888u;
    let low = (signed << 4u) & 0xf0f0f0f0u;
    let high = signed & 0xf0f0f0f0u;
    return u32(dot4I8Packed(low, low) + dot4I8Packed(high, high)) >> 8u;
}

fn load_key_chunk(base: u32, block_ix: u32) -> vec4<u32> {
    let second = block_ix % 2u == 1u;
    let w = base + block_ix / 2u * 9u + select(0u, 4u, second);
    let head = keys[w];
    let last = keys[w + 4u];
    var sum = squares_of_nibbles(keys[w + 1u]) + squares_of_nibbles(keys[w + 2u]) + squares_of_nibbles(keys[w + 3u]);
    // A nibble of 8 adds nothing.
    sum += squares_of_nibbles(select((head & 0xffff0000u) | 0x8888u, 0x88888888u, second));
    sum += squares_of_nibbles(select((last & 0xffffu) | 0x88880000u, last, second));
    let scales = unpack2x16float(head);
    return vec4<u32>(sum, bitcast<u32>(select(scales.x, scales.y, second)), 0u, 0u);
}
