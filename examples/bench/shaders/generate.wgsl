// Fills a window of a tensor with about normal elements: each is the sum of four uniform bytes times the scale of its
// token; or, where tokens are to be alike, of one magnitude but for the first of a token. All arithmetic is exact (integers
// cut to the width of the dtype), so every device makes the same bits. Quantised rows have uniform quants, and the token's
// scale in each block.
// Reference: examples/bench/data.rs.

struct Params {
    first_word: u32,    // of the tensor, where the window begins
    num_words: u32,     // of the window
    token_words: u32,   // words a token
    seed: u32,
    mantissa_bits: u32, // of the dtype, the implicit one included: 11 f16, 8 bf16, 24 f32, 4 e4m3, 3 e5m2
    first_scale: u32,   // scales of tokens are uniform from this one
    num_scales: u32,
    flatness: u32,      // 1: one magnitude but for the first element, 2: of that too
    unit: f32,          // a power of two, by which all is multiplied
    block_bytes: u32,   // of quantised rows; 0: others
    scale_bytes: u32,   // at a block's begin: 2 f16, 4 f32
    flat_quants: u32,   // byte of quants of one magnitude; their signs are not alike
    flat_signs: u32,    // bits by which it differs from that of the other sign
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<u32>;

fn scale_of(token: u32) -> u32 {
    return params.first_scale + mix(token ^ ~params.seed) % params.num_scales;
}

fn element(element_ix: u32, token: u32, is_first: bool) -> f32 {
    let bits = mix(element_ix ^ params.seed);
    let sum = i32((bits & 255u) + ((bits >> 8u) & 255u) + ((bits >> 16u) & 255u) + (bits >> 24u)) - 510;
    var magnitude = u32(abs(sum)) * scale_of(token);
    if params.flatness > 0u {
        magnitude = select(0x10000u, (bits >> 22u) << 6u, is_first && params.flatness == 1u);
    }
    let cut = 32u - min(countLeadingZeros(magnitude) + params.mantissa_bits, 32u);
    let kept = f32((magnitude >> cut) << cut) * params.unit;
    return select(kept, -kept, sum < 0);
}

// Two bytes of a quantised row; scales have eight bits, so that they are exact in f16 and in the upper half of an f32.
fn quants(half_ix: u32, token: u32) -> u32 {
    let at = half_ix % (2u * params.token_words) * 2u;
    let in_block = at % params.block_bytes;
    if in_block < params.scale_bytes {
        let scale = f32(scale_of(token)) * params.unit;
        if params.scale_bytes == 2u {
            return pack2x16float(vec2f(scale, 0.0));
        }
        return select(0u, bitcast<u32>(scale) >> 16u, in_block == 2u);
    }
    let bits = mix(half_ix ^ params.seed);
    let is_first = at == params.scale_bytes;
    if params.flatness == 0u || (is_first && params.flatness == 1u) {
        return bits & 0xffffu;
    }
    let signs = vec2u(bits, bits >> 8u) & vec2u(params.flat_signs);
    return (params.flat_quants ^ signs.x) | ((params.flat_quants ^ signs.y) << 8u);
}

// Four elements of f8, by way of f16, whose exponent has a bias of 15 like e5m2's, where e4m3's has 7.
fn f8(word_ix: u32, token: u32, is_first: bool) -> u32 {
    let is_e4m3 = params.mantissa_bits == 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
        let value = element(4u * word_ix + i, token, is_first && i == 0u) * select(1.0, 1.0 / 256.0, is_e4m3);
        let half = pack2x16float(vec2f(value, 0.0));
        word |= select(half >> 8u, ((half >> 8u) & 0x80u) | ((half >> 7u) & 0x7fu), is_e4m3) << (8u * i);
    }
    return word;
}

fn word(word_ix: u32) -> u32 {
    let token = word_ix / params.token_words;
    let is_first = word_ix % params.token_words == 0u;
    if params.block_bytes > 0u {
        return quants(2u * word_ix, token) | (quants(2u * word_ix + 1u, token) << 16u);
    }
    if params.mantissa_bits < 8u {
        return f8(word_ix, token, is_first);
    }
    if params.mantissa_bits == 24u {
        return bitcast<u32>(element(word_ix, token, is_first));
    }
    let low = element(2u * word_ix, token, is_first);
    let high = element(2u * word_ix + 1u, token, false);
    if params.mantissa_bits == 11u {
        return pack2x16float(vec2f(low, high));
    }
    return (bitcast<u32>(low) >> 16u) | bitcast<u32>(high);
}

@compute @workgroup_size(256)
fn generate(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    for (var i = id.x; i < params.num_words; i += groups.x * 256u) {
        tensor[i] = word(params.first_word + i);
    }
}
