//! A real cache: five layers of SmolLM2-135M over 512 tokens of a novel.

use std::collections::BTreeSet;

use half::f16;
use keynorm::{Budget, Direction, Dtype, KvShape, Order, Policy, Selector, TensorSpec};
use safetensors::SafeTensors;

use crate::support::{BUILT, Case, Fixture, HostLayer, Rng, gpu};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_kv_512_f16.safetensors");

/// The layers of the file as a cache of densely packed rows.
fn load() -> (KvShape, Vec<[Vec<u8>; 2]>) {
    let bytes = std::fs::read(FILE).expect("the bundled cache");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut numbers: Vec<u32> = file
        .names()
        .iter()
        .filter_map(|name| name.strip_prefix("layers.")?.strip_suffix(".keys")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers.len(), 5, "layers of the bundled cache");
    let shape = file.tensor("layers.0.keys").expect("keys").shape().to_vec();
    let [batch_size, num_kv_heads, capacity, head_dim] =
        [0, 1, 2, 3].map(|ix| u32::try_from(shape[ix]).expect("a small dimension"));
    let spec = TensorSpec::new(Dtype::F16, head_dim);
    let shape = KvShape { num_layers: 5, batch_size, num_kv_heads, capacity, keys: spec, values: spec };
    let data = |layer: u32, part: &str| {
        let tensor = file.tensor(&format!("layers.{layer}.{part}")).expect("a tensor of the layer");
        assert_eq!(tensor.dtype(), safetensors::Dtype::F16, "dtype of layer {layer}");
        tensor.data().to_vec()
    };
    let layers = numbers.into_iter().map(|l| [data(l, "keys"), data(l, "values")]).collect();
    (shape, layers)
}

#[test]
fn every_layer_is_compressed_as_the_reference_and_double_precision_say() {
    let gpu = gpu();
    let (shape, layers) = load();
    for (keep_ratio, selector, order) in [
        (0.1, Selector::Radix, Order::Fill),
        (0.5, Selector::Radix, Order::Positional),
        (0.5, Selector::Bitonic, Order::Fill),
        (0.9, Selector::Bitonic, Order::Positional),
        (0.9, Selector::Auto, Order::Fill),
    ] {
        for direction in [Direction::Lowest, Direction::Highest] {
            let policy = Policy { direction, selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
            let case = Case::new(shape, policy);
            let mut rng = Rng(case.seed);
            let host = layers.iter().map(|[keys, values]| {
                let mut layer = HostLayer::new(&case, &mut rng);
                // The rest of each buffer is its guard band.
                layer.buffers[0][..keys.len()].copy_from_slice(keys);
                layer.buffers[1][..values.len()].copy_from_slice(values);
                layer
            });
            let host = host.collect();
            let mut fixture = Fixture::of(gpu, &case, host, rng, &BUILT);
            fixture.compress_and_compare(gpu, &case, "real cache");
            let kept = pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
            for (layer, kept) in layers.iter().zip(&kept.layers) {
                for (row, positions) in kept.positions.iter().enumerate() {
                    let row_bytes = (shape.capacity * shape.keys.row_bytes()) as usize;
                    check_in_double_precision(&shape, direction, &layer[0][row * row_bytes..][..row_bytes], positions);
                }
            }
        }
    }
}

/// The kept are those of the lowest (or highest) norms but for keys within rounding of the threshold.
fn check_in_double_precision(shape: &KvShape, direction: Direction, keys: &[u8], kept: &[u32]) {
    let norm =
        |key: &[u8]| -> f64 { key.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64().powi(2)).sum() };
    let norms: Vec<f64> = keys.chunks_exact(shape.keys.row_bytes() as usize).map(norm).collect();
    let mut ranked: Vec<u32> = (0..shape.capacity).collect();
    ranked.sort_by(|&a, &b| norms[a as usize].total_cmp(&norms[b as usize]));
    if direction == Direction::Highest {
        ranked.reverse();
    }
    let threshold = norms[ranked[kept.len() - 1] as usize];
    let expected: BTreeSet<u32> = ranked[..kept.len()].iter().copied().collect();
    let got: BTreeSet<u32> = kept.iter().copied().collect();
    assert_eq!(got.len(), kept.len(), "no position twice");
    for &position in got.symmetric_difference(&expected) {
        let distance = (norms[position as usize] - threshold).abs();
        let bound = threshold * f64::from(shape.keys.head_dim) * 2.0_f64.powi(-24);
        assert!(distance <= bound, "position {position} is {distance} from the threshold {threshold}");
    }
}
