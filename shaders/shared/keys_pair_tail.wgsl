// As keys_pair_word.wgsl, of rows of KEY_WORDS words: the last chunk may be a part of 16 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> front: array<u32>;

override KEY_WORDS: u32 = 33u;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let w = min(vec4<u32>(0u, 1u, 2u, 3u) + chunk_ix * 4u, vec4<u32>(KEY_WORDS - 1u)) + base;
    return vec4<u32>(keys[w.x], keys[w.y], keys[w.z], keys[w.w]);
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let w = chunk_ix * 4u;
    for (var i = 0u; i < min(KEY_WORDS - w, 4u); i++) {
        front[base + params.store_shift + w + i] = chunk[i];
    }
}
