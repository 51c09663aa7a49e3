// E5M2: the upper byte of an f16.
const F8_UNIT: f32 = 1.0;

fn f8_magnitudes(word: u32) -> vec2<f32> {
    return unpack2x16float(word & 0x7f007f00u);
}

fn f8_pair(word: u32) -> vec2<f32> {
    return unpack2x16float(word & 0xff00ff00u);
}

// An element whose magnitude exceeds 0x7c is NaN; adding 3 carries exactly those into bit 7.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let carried = (chunk & vec4<u32>(0x7f7f7f7fu)) + vec4<u32>(0x03030303u);
    return (carried.x | carried.y | carried.z | carried.w) & 0x80808080u;
}
