// ggml's q8_0: blocks of 34 bytes, an f16 scale and 32 signed bytes. Two blocks are 17 words; the second begins in the
// middle of the ninth.
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;

fn load_key_chunk(base: u32, block_ix: u32) -> vec4<u32> {
    let second = block_ix % 2u == 1u;
    let w = base + block_ix / 2u * 17u + select(0u, 8u, second);
    let head = keys[w];
    let last = keys[w + 8u];
    var sum = squares_of_bytes(keys[w + 1u]) + squares_of_bytes(keys[w + 2u]) + squares_of_bytes(keys[w + 3u])
        + squares_of_bytes(keys[w + 4u]) + squares_of_bytes(keys[w + 5u]) + squares_of_bytes(keys[w + 6u])
        + squares_of_bytes(keys[w + 7u]);
    // A byte of 0 adds nothing.
    sum += squares_of_bytes(select(head & 0xffff0000u, 0u, second));
    sum += squares_of_bytes(select(last & 0xffffu, last, second));
    let scales = unpack2x16float(head);
    return vec4<u32>(sum, bitcast<u32>(select(scales.x, scales.y, second)), 0u, 0u);
}
