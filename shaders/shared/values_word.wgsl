// Values on 4-byte boundaries: four accesses a chunk. Strides and bases are in words of 4 bytes.
@group(0) @binding(2) var<storage, read_write> values: array<u32>;

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix * 4u;
    return vec4<u32>(values[w], values[w + 1u], values[w + 2u], values[w + 3u]);
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = base + chunk_ix * 4u;
    values[w] = chunk.x;
    values[w + 1u] = chunk.y;
    values[w + 2u] = chunk.z;
    values[w + 3u] = chunk.w;
}
