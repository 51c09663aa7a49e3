// f16 elements: two a word, eight a chunk. Their squares are exact in f32, so only the order of additions matters.
const LINE_CHUNKS: u32 = 4u; // chunks of a cache line

fn add_word(word: u32, sum: f32) -> f32 {
    let e = unpack2x16float(word);
    return (sum + e.x * e.x) + e.y * e.y;
}

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    return add_word(chunk.w, add_word(chunk.z, add_word(chunk.y, add_word(chunk.x, sum))));
}

// A half whose magnitude exceeds 0x7c00 is NaN; adding 0x3ff carries exactly those into bit 15.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let carried = (chunk & vec4<u32>(0x7fff7fffu)) + vec4<u32>(0x03ff03ffu);
    return (carried.x | carried.y | carried.z | carried.w) & 0x80008000u;
}
