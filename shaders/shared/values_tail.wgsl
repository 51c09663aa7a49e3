// Values on 4-byte boundaries whose rows are VALUE_WORDS words: the last chunk may be a part of 16 bytes. Strides and bases are
// in words of 4 bytes.
@group(0) @binding(2) var<storage, read_write> values: array<u32>;

override VALUE_WORDS: u32 = 33u;

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = min(vec4<u32>(0u, 1u, 2u, 3u) + chunk_ix * 4u, vec4<u32>(VALUE_WORDS - 1u)) + base;
    return vec4<u32>(values[w.x], values[w.y], values[w.z], values[w.w]);
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = chunk_ix * 4u;
    for (var i = 0u; i < min(VALUE_WORDS - w, 4u); i++) {
        values[base + w + i] = chunk[i];
    }
}
