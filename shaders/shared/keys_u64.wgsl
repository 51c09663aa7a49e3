// Keys on 16-byte boundaries, two words at a time, for devices that load each lane's word by itself. Strides and bases are in
// chunks of 16 bytes.
@group(0) @binding(1) var<storage, read_write> keys: array<vec2<u64>>;

fn load_key_chunk(base: u32, chunk_ix: u32) -> vec4<u32> {
    let chunk = keys[base + chunk_ix];
    return vec4<u32>(u32(chunk.x), u32(chunk.x >> 32u), u32(chunk.y), u32(chunk.y >> 32u));
}

fn store_key_chunk(base: u32, chunk_ix: u32, chunk: vec4<u32>) {
    let low = u64(chunk.x) | (u64(chunk.y) << 32u);
    keys[base + chunk_ix] = vec2<u64>(low, u64(chunk.z) | (u64(chunk.w) << 32u));
}
