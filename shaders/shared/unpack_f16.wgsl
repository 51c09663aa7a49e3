// Elements of f16 chunks: two vectors of four a chunk.
const CHUNK_QUADS: u32 = 2u;

fn low_quad(chunk: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(chunk.x), unpack2x16float(chunk.y));
}

fn high_quad(chunk: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(chunk.z), unpack2x16float(chunk.w));
}
