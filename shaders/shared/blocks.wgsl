// The norm of quantised rows, a block at a time. A chunk is (sum of the squared quants, bits of the scale in f32, 0, 0): the
// sum is exact, and below 2^24.

const LINE_CHUNKS: u32 = 1024u; // more than a token has: blocks are not read ahead

fn squares_of_bytes(word: u32) -> u32 {
    return u32(dot4I8Packed(word, word));
}

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    let scale = bitcast<f32>(chunk.y);
    let product = bitcast<u32>(f32(chunk.x) * (scale * scale));
    // Compilers do not know that `zero` is 0, so none fuses the product with the addition.
    return sum + bitcast<f32>(select(product | params.zero, 0u, chunk.x == 0u));
}

// A scale that is not finite makes its key count as NaN.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    return u32((chunk.y & 0x7fffffffu) >= 0x7f800000u);
}
