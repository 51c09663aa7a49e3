// Values on 16-byte boundaries: one access a chunk. Strides and bases are in chunks of 16 bytes.
@group(0) @binding(2) var<storage, read_write> values: array<vec4<u32>>;

fn load_value_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    return values[base + chunk_ix];
}

fn store_value_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    values[base + chunk_ix] = chunk;
}
