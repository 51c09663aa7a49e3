// Layers with buffers of their own, bound as arrays: the same layer for a whole workgroup. The module gives
// NUM_LAYERS.

struct Chunks {
    chunks: array<vec4<u32>>,
}

var<private> bound_layer: u32;

fn choose_layer(layer_ix: u32) {
    bound_layer = layer_ix;
}

// Index of the layer in the arrays. Some devices load a buffer's address for invocations too that a branch has left out,
// whatever their index is: SwiftShader does, by what it finds on its stack. So it is in range everywhere.
fn array_ix() -> u32 {
    return min(bound_layer, NUM_LAYERS - 1u);
}
