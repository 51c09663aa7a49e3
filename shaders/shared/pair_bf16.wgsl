// bf16 elements: two a word.
const ELEMENTS_A_WORD: u32 = 2u;

fn unpack_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Of finite numbers, rounded to even.
fn pack_pair(pair: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(pair);
    let halves = (bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u))) >> vec2<u32>(16u);
    return halves.x | (halves.y << 16u);
}
