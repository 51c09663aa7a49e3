// Elements of f32 chunks: one vector of four a chunk.
const CHUNK_QUADS: u32 = 1u;

fn low_quad(chunk: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(chunk);
}

// A chunk has no more.
fn high_quad(chunk: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(0.0);
}
