// Addresses of a cache by strides, in units of the access file.

struct TensorLayout {
    batch_stride: u32, // units of the access file, modulo 2^32
    head_stride: u32,  // units
    token_stride: u32, // units
    layer_stride: u32, // units, modulo 2^32; 0 where layers have buffers of their own
    base: u32,         // units, modulo 2^32: of the first layer's sequence `first_sequence`, head 0, token 0
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

// Where a row begins.
alias Place = u32;

// The place of a row of the layer `layer_ix` of those that are bound, which from here on is the one that is accessed.
fn place_of(t: TensorLayout, layer_ix: u32, row: u32, num_kv_heads: u32) -> Place {
    choose_layer(layer_ix);
    let head = divided(row, num_kv_heads);
    let sequence = head.quotient - params.first_sequence;
    return t.base + layer_ix * t.layer_stride + sequence * t.batch_stride + head.rest * t.head_stride;
}

fn token_base(t: TensorLayout, place: Place, slot: u32) -> u32 {
    return place + slot * t.token_stride;
}

// Of four tokens in a row, none beyond the last.
fn token_bases(t: TensorLayout, place: Place, slot: u32, last: u32) -> vec4<u32> {
    let slots = min(vec4<u32>(slot, slot + 1u, slot + 2u, slot + 3u), vec4<u32>(last));
    return vec4<u32>(place) + slots * t.token_stride;
}
