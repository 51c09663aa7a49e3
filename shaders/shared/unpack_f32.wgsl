// Elements of f32 chunks: one vector of four a chunk.
const CHUNK_QUADS: u32 = 1u;

fn chunk_quad(chunk: vec4<u32>, i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(chunk);
}
