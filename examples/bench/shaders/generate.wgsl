// Fills a window of a tensor with about normal elements: each is the sum of four uniform bytes times the scale of its
// token; or, where tokens are to be alike, of one magnitude but for the first of a token. All arithmetic is exact (integers
// cut to the width of the dtype), so every device makes the same bits.
// Reference: examples/bench/data.rs.

struct Params {
    first_word: u32,    // of the tensor, where the window begins
    num_words: u32,     // of the window
    token_words: u32,   // words a token
    seed: u32,
    mantissa_bits: u32, // of the dtype, the implicit one included: 11 f16, 8 bf16, 24 f32
    first_scale: u32,   // scales of tokens are uniform from this one
    num_scales: u32,
    flatness: u32,      // 1: one magnitude but for the first element, 2: of that too
    unit: f32,          // a power of two, by which all is multiplied
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<u32>;

fn element(element_ix: u32, token: u32, is_first: bool) -> f32 {
    let bits = mix(element_ix ^ params.seed);
    let sum = i32((bits & 255u) + ((bits >> 8u) & 255u) + ((bits >> 16u) & 255u) + (bits >> 24u)) - 510;
    let scale = params.first_scale + mix(token ^ ~params.seed) % params.num_scales;
    var magnitude = u32(abs(sum)) * scale;
    if params.flatness > 0u {
        magnitude = select(0x10000u, (bits >> 22u) << 6u, is_first && params.flatness == 1u);
    }
    let cut = 32u - min(countLeadingZeros(magnitude) + params.mantissa_bits, 32u);
    let kept = f32((magnitude >> cut) << cut) * params.unit;
    return select(kept, -kept, sum < 0);
}

fn word(word_ix: u32) -> u32 {
    let token = word_ix / params.token_words;
    let is_first = word_ix % params.token_words == 0u;
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
