// E4M3, by way of f16: a sign, then exponent and mantissa behind one another as f16 has them, but for the bias of the
// exponent, 7 and not 15. Subnormals are f16's too.
const F8_UNIT: f32 = 0.00390625;

fn f8_magnitudes(word: u32) -> vec2<f32> {
    return unpack2x16float((word >> 1u) & 0x3f803f80u);
}

fn f8_pair(word: u32) -> vec2<f32> {
    return unpack2x16float(((word >> 1u) & 0x3f803f80u) | (word & 0x80008000u));
}

// An element whose magnitude is 0x7f is NaN; adding 1 carries exactly those into bit 7.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let carried = (chunk & vec4<u32>(0x7f7f7f7fu)) + vec4<u32>(0x01010101u);
    return (carried.x | carried.y | carried.z | carried.w) & 0x80808080u;
}
