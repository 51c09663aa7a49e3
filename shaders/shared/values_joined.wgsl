// Keys and values whose ranges touch or interleave in one buffer are bound once, as keys, in the units of the keys file.

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    return load_key_chunk(base, chunk_ix);
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    store_key_chunk(base, chunk_ix, chunk);
}
