// One layer is bound, or several that lie in one buffer.

fn choose_layer(layer_ix: u32) {
}
