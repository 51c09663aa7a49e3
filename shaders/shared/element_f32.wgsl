// f32 elements: four a chunk.
const LINE_CHUNKS: u32 = 4u; // chunks of a cache line

fn add_squares(chunk: vec4<u32>, sum: f32) -> f32 {
    let e = bitcast<vec4<f32>>(chunk);
    return (((sum + e.x * e.x) + e.y * e.y) + e.z * e.z) + e.w * e.w;
}

// A float whose magnitude exceeds 0x7f800000 is NaN; adding 0x7fffff carries exactly those into bit 31. By bits, since
// `x != x` is false for NaN on Vulkan through naga.
fn nan_bits(chunk: vec4<u32>) -> u32 {
    let carried = (chunk & vec4<u32>(0x7fffffffu)) + vec4<u32>(0x007fffffu);
    return (carried.x | carried.y | carried.z | carried.w) & 0x80000000u;
}
