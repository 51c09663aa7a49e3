// Keys on 4-byte boundaries: four accesses a chunk. Strides and bases are in words of 4 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix * 4u;
    return vec4<u32>(keys[w], keys[w + 1u], keys[w + 2u], keys[w + 3u]);
}
