// f8 elements: four a word, sixteen a chunk. The module gives F8_UNIT, a power of two, and times it f8_magnitudes and f8_pair:
// the elements in the second and the last byte of a word. Squares are exact in f32, and sums of them by any unit alike.
const LINE_CHUNKS: u32 = 4u; // chunks of a cache line

fn add_word(word: u32, sum: f32) -> f32 {
    let even = f8_magnitudes(word << 8u);
    let odd = f8_magnitudes(word);
    return (((sum + even.x * even.x) + odd.x * odd.x) + even.y * even.y) + odd.y * odd.y;
}

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    let before = sum * (F8_UNIT * F8_UNIT);
    let after = add_word(chunk.w, add_word(chunk.z, add_word(chunk.y, add_word(chunk.x, before))));
    return after * (1.0 / (F8_UNIT * F8_UNIT));
}
