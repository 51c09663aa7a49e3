// f32 elements: one a word.
const ELEMENTS_A_WORD: u32 = 1u;

fn unpack_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word), 0.0);
}

fn pack_pair(pair: vec2<f32>) -> u32 {
    return bitcast<u32>(pair.x);
}
