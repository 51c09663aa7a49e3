// f16 elements: two a word.
const ELEMENTS_A_WORD: u32 = 2u;

fn unpack_pair(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

// Of a finite number, rounded to even, by integers but for subnormal results: adding 0.5 to those leaves their bits at the end
// of the sum.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    let normal = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u;
    let subnormal = bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u;
    let finite = select(normal, subnormal, magnitude < 0x38800000u);
    let half = select(finite, 0x7c00u, magnitude >= 0x47800000u);
    return half | ((bits >> 16u) & 0x8000u);
}

fn pack_pair(pair: vec2<f32>) -> u32 {
    return half_bits(pair.x) | (half_bits(pair.y) << 16u);
}
