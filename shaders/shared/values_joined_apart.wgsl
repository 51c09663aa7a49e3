// Values that are bound with the keys, as keys_apart.wgsl has keys.

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix;
    let last = base + VALUE_WORDS - 1u;
    var chunk = vec4<u32>(keys[w], 0u, 0u, 0u);
    if VALUE_CHUNKS < VALUE_WORDS {
        chunk.y = keys[min(w + VALUE_CHUNKS, last)];
    }
    if 2u * VALUE_CHUNKS < VALUE_WORDS {
        chunk.z = keys[min(w + 2u * VALUE_CHUNKS, last)];
    }
    if 3u * VALUE_CHUNKS < VALUE_WORDS {
        chunk.w = keys[min(w + 3u * VALUE_CHUNKS, last)];
    }
    return chunk;
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = base + chunk_ix;
    keys[w] = chunk.x;
    if chunk_ix + VALUE_CHUNKS < VALUE_WORDS {
        keys[w + VALUE_CHUNKS] = chunk.y;
    }
    if chunk_ix + 2u * VALUE_CHUNKS < VALUE_WORDS {
        keys[w + 2u * VALUE_CHUNKS] = chunk.z;
    }
    if chunk_ix + 3u * VALUE_CHUNKS < VALUE_WORDS {
        keys[w + 3u * VALUE_CHUNKS] = chunk.w;
    }
}
