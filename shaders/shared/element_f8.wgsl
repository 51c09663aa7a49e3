// f8 elements: four a word, sixteen a chunk. Their squares are exact in f32. The module gives f8_pair, a vector of the
// elements in the second and the last byte of a word.
const LINE_CHUNKS: u32 = 4u; // chunks of a cache line

fn add_word(word: u32, sum: f32) -> f32 {
    let even = f8_pair(word << 8u);
    let odd = f8_pair(word);
    return (((sum + even.x * even.x) + odd.x * odd.x) + even.y * even.y) + odd.y * odd.y;
}

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    return add_word(chunk.w, add_word(chunk.z, add_word(chunk.y, add_word(chunk.x, sum))));
}
