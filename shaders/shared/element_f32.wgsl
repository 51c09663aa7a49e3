// f32 elements: four a chunk.
fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    let e = bitcast<vec4<f32>>(chunk);
    return (((sum + e.x * e.x) + e.y * e.y) + e.z * e.z) + e.w * e.w;
}

// Non-zero when an element is NaN, by its bits: `x != x` is false for NaN on Vulkan through naga.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let nan = (chunk & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return u32(any(nan));
}
