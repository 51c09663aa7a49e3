// Elements of f16 chunks: two vectors of four a chunk.
const CHUNK_QUADS: u32 = 2u;

fn chunk_quad(chunk: vec4<u32>, i: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(chunk[2u * i]), unpack2x16float(chunk[2u * i + 1u]));
}
