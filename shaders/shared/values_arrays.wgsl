// Values on 16-byte boundaries, a buffer to a layer: one access a chunk. Strides and bases are in chunks of 16 bytes.
@group(1) @binding(1) var<storage, read_write> values: binding_array<Chunks>;

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    return values[array_ix()].chunks[base + chunk_ix];
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    values[array_ix()].chunks[base + chunk_ix] = chunk;
}
