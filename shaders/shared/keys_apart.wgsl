// Keys on 4-byte boundaries, to be moved: rows of KEY_WORDS words, which the module gives: naga 30 refuses overrides behind
// arrays whose lengths are made of others. A chunk is every KEY_CHUNKS-th word, four at most, so that lanes side by side access
// words side by side. Strides and bases are in words of 4 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;

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
    let w = base + chunk_ix;
    keys[w] = chunk.x;
    if chunk_ix + KEY_CHUNKS < KEY_WORDS {
        keys[w + KEY_CHUNKS] = chunk.y;
    }
    if chunk_ix + 2u * KEY_CHUNKS < KEY_WORDS {
        keys[w + 2u * KEY_CHUNKS] = chunk.z;
    }
    if chunk_ix + 3u * KEY_CHUNKS < KEY_WORDS {
        keys[w + 3u * KEY_CHUNKS] = chunk.w;
    }
}
