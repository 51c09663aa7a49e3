// As keys_apart.wgsl, from a band to one before it. Addresses are those of the source's band, in words of 4 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> front: array<u32>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix;
    let last = base + KEY_WORDS - 1u;
    var chunk = vec4<u32>(keys[w], 0u, 0u, 0u);
    if KEY_CHUNKS < KEY_WORDS {
        chunk.y = keys[min(w + KEY_CHUNKS, last)];
    }
    if 2u * KEY_CHUNKS < KEY_WORDS {
        chunk.z = keys[min(w + 2u * KEY_CHUNKS, last)];
    }
    if 3u * KEY_CHUNKS < KEY_WORDS {
        chunk.w = keys[min(w + 3u * KEY_CHUNKS, last)];
    }
    return chunk;
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = base + params.store_shift + chunk_ix;
    front[w] = chunk.x;
    if chunk_ix + KEY_CHUNKS < KEY_WORDS {
        front[w + KEY_CHUNKS] = chunk.y;
    }
    if chunk_ix + 2u * KEY_CHUNKS < KEY_WORDS {
        front[w + 2u * KEY_CHUNKS] = chunk.z;
    }
    if chunk_ix + 3u * KEY_CHUNKS < KEY_WORDS {
        front[w + 3u * KEY_CHUNKS] = chunk.w;
    }
}
