// Rows of one tensor that move from a band to one before it, on 16-byte boundaries: one access a chunk. Addresses are
// those of the source's band, in chunks of 16 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> front: array<vec4<u32>>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    return keys[base + chunk_ix];
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    front[base + params.store_shift + chunk_ix] = chunk;
}
