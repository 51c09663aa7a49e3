// Values on 4-byte boundaries, as keys_apart.wgsl has keys.
@group(0) @binding(2) var<storage, read_write> values: array<u32>;

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = base + chunk_ix;
    let last = base + VALUE_WORDS - 1u;
    var chunk = vec4<u32>(values[w], 0u, 0u, 0u);
    if VALUE_CHUNKS < VALUE_WORDS {
        chunk.y = values[min(w + VALUE_CHUNKS, last)];
    }
    if 2u * VALUE_CHUNKS < VALUE_WORDS {
        chunk.z = values[min(w + 2u * VALUE_CHUNKS, last)];
    }
    if 3u * VALUE_CHUNKS < VALUE_WORDS {
        chunk.w = values[min(w + 3u * VALUE_CHUNKS, last)];
    }
    return chunk;
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = base + chunk_ix;
    values[w] = chunk.x;
    if chunk_ix + VALUE_CHUNKS < VALUE_WORDS {
        values[w + VALUE_CHUNKS] = chunk.y;
    }
    if chunk_ix + 2u * VALUE_CHUNKS < VALUE_WORDS {
        values[w + 2u * VALUE_CHUNKS] = chunk.z;
    }
    if chunk_ix + 3u * VALUE_CHUNKS < VALUE_WORDS {
        values[w + 3u * VALUE_CHUNKS] = chunk.w;
    }
}
