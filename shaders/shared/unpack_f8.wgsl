// Elements of f8 chunks: four vectors of four a chunk.
const CHUNK_QUADS: u32 = 4u;

fn chunk_quad(chunk: vec4<u32>, i: u32) -> vec4<f32> {
    let even = f8_pair(chunk[i] << 8u);
    let odd = f8_pair(chunk[i]);
    return vec4<f32>(even.x, odd.x, even.y, odd.y) * (1.0 / F8_UNIT);
}
