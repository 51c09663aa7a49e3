// Layers with buffers of their own, bound as arrays: the same layer for a whole workgroup.

struct Chunks {
    chunks: array<vec4<u32>>,
}

var<private> bound_layer: u32;

fn choose_layer(layer_ix: u32) {
    bound_layer = layer_ix;
}
