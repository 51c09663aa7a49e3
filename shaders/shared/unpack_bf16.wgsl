// Elements of bf16 chunks, as element_bf16.wgsl sees them: two vectors of four a chunk.
const CHUNK_QUADS: u32 = 2u;

fn word_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(bf16_value(word << 16u), bf16_value(word & 0xffff0000u));
}

fn chunk_quad(chunk: vec4<u32>, i: u32) -> vec4<f32> {
    return vec4<f32>(word_pair(chunk[2u * i]), word_pair(chunk[2u * i + 1u]));
}
