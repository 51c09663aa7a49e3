// 1 / sqrt(x) by multiplications and subtractions alone, so that it has the same bits on every device: the division and
// square root of a device may err by some units. Within 2^-20 relative for normal x. Reference: src/reference/key_diff.rs.

// Without its last bit: no compiler can fuse a product of which a bit is missing with what is added to it, nor multiply a
// difference out (seen on an H100, of constants).
fn materialised(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) & vec4<u32>(0xfffffffeu));
}

// An estimate from the exponent and two Newton steps, the first with constants that halve its error (J. Kadlec).
fn inverse_sqrt(x: vec4<f32>) -> vec4<f32> {
    var y = bitcast<vec4<f32>>(vec4<u32>(0x5f1ffff9u) - (bitcast<vec4<u32>>(x) >> vec4<u32>(1u)));
    y *= materialised(0.70395225 * materialised(2.3892446 - materialised(materialised(x * y) * y)));
    return y * materialised(1.5 - 0.5 * materialised(materialised(x * y) * y));
}
