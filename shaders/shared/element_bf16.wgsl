// bf16 elements: two a word, eight a chunk. Magnitudes below 2^-63 count as zero, so that squares are exact in f32.
const LINE_CHUNKS: u32 = 4u; // chunks of a cache line

fn bf16_value(high_half: u32) -> f32 {
    return bitcast<f32>(select(high_half, 0u, (high_half & 0x7fff0000u) < 0x20000000u));
}

fn add_word(word: u32, sum: f32) -> f32 {
    let low = bf16_value(word << 16u);
    let high = bf16_value(word & 0xffff0000u);
    return (sum + low * low) + high * high;
}

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    return add_word(chunk.w, add_word(chunk.z, add_word(chunk.y, add_word(chunk.x, sum))));
}

// A half whose magnitude exceeds 0x7f80 is NaN; adding 0x7f carries exactly those into bit 15.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let carried = (chunk & vec4<u32>(0x7fff7fffu)) + vec4<u32>(0x007f007fu);
    return (carried.x | carried.y | carried.z | carried.w) & 0x80008000u;
}
