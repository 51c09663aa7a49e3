// Rows of one tensor that move from a band to one before it, on 4-byte boundaries: four accesses a chunk. Addresses are
// those of the source's band, in words of 4 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> front: array<u32>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix * 4u;
    return vec4<u32>(keys[w], keys[w + 1u], keys[w + 2u], keys[w + 3u]);
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = base + params.store_shift + chunk_ix * 4u;
    front[w] = chunk.x;
    front[w + 1u] = chunk.y;
    front[w + 2u] = chunk.z;
    front[w + 3u] = chunk.w;
}
