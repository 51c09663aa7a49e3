// Keys on 16-byte boundaries, a buffer to a layer: one access a chunk. Strides and bases are in chunks of 16 bytes.
@group(1) @binding(0) var<storage, read_write> keys: binding_array<Chunks>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    return keys[array_ix()].chunks[base + chunk_ix];
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    keys[array_ix()].chunks[base + chunk_ix] = chunk;
}
