//! A cache sharded by KV head over two devices, as under tensor parallelism: each device compresses its own heads, and
//! nothing passes between them. The result is compared, bit for bit, with that of one device that holds all heads.
//!
//! ```sh
//! scripts/with-adapter cargo run --release --example two_devices
//! ```

use keynorm::kept::Kept;
use keynorm::{Budget, Compressor, Dtype, KvShape, KvView, Options, Policy, TensorSpec, wgpu};

const BATCH_SIZE: u32 = 2;
const NUM_KV_HEADS: u32 = 8;
const CAPACITY: u32 = 3000;
const HEAD_DIM: u32 = 64;
/// Tokens of each sequence.
const LENGTHS: [u32; 2] = [3000, 1234];

/// What a device holds afterwards: K, then V, and what was kept.
struct Compressed {
    tensors: [Vec<u32>; 2],
    kept: Kept,
}

fn shape(num_kv_heads: u32) -> KvShape {
    let spec = TensorSpec::new(Dtype::F16, HEAD_DIM);
    KvShape { num_layers: 1, batch_size: BATCH_SIZE, num_kv_heads, capacity: CAPACITY, keys: spec, values: spec }
}

fn row_words() -> usize {
    (CAPACITY * HEAD_DIM / 2) as usize
}

/// Two f16 between 0.5 and 2 a word, other ones in every place.
fn random_rows(seed: u32) -> Vec<u32> {
    let word = |i: u32| {
        let bits = (i ^ seed).wrapping_mul(0x9e37_79b9);
        let bits = (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca6b);
        ((bits ^ (bits >> 13)) & 0x83ff_87ff).wrapping_add(0x3800_3800)
    };
    (0..(BATCH_SIZE * NUM_KV_HEADS) * row_words() as u32).map(word).collect()
}

/// The rows of some heads of every sequence.
fn shard(rows: &[u32], heads: std::ops::Range<u32>) -> Vec<u32> {
    let is_in = |row: usize| heads.contains(&(row as u32 % NUM_KV_HEADS));
    rows.chunks(row_words()).enumerate().filter(|(row, _)| is_in(*row)).flat_map(|(_, r)| r.to_vec()).collect()
}

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
}

async fn open() -> Result<Gpu, Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: keynorm::optional_features(&adapter),
        required_limits: keynorm::recommended_limits(&adapter),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await?;
    Ok(Gpu { device, queue, name: adapter.get_info().name })
}

/// Compresses some heads on a device of their own.
async fn compress(gpu: &Gpu, tensors: [Vec<u32>; 2], heads: u32) -> Result<Compressed, Box<dyn std::error::Error>> {
    let Gpu { device, queue, name } = gpu;
    println!("{heads} heads on {name}");
    let shape = shape(heads);
    let upload = |words: &Vec<u32>| {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: words.len() as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        queue.write_buffer(&buffer, 0, &bytes);
        buffer
    };
    let [keys, values] = [upload(&tensors[0]), upload(&tensors[1])];
    let mut policy = Policy::keydiff(Budget::keep_ratio(0.5));
    policy.skip_layers.clear(); // there is but one
    let plan = Compressor::new(device, Options::default())?.plan(&shape, &policy)?;
    let state = plan.create_state()?;
    let bound = plan.bind(device, &[KvView::hnd(&shape, &keys, &values)], &state, &plan.create_workspace()?)?;
    state.set_lengths(queue, &LENGTHS)?;
    let kept = bound.compress(device, queue, CAPACITY).await?;
    let keys = keynorm::kept::read_words(device, queue, &keys).await?;
    let values = keynorm::kept::read_words(device, queue, &values).await?;
    Ok(Compressed { tensors: [keys, values], kept })
}

/// Both ways, compared; returns the rows that were.
pub async fn run() -> Result<usize, Box<dyn std::error::Error>> {
    let tensors = [random_rows(1), random_rows(2)];
    let (one, two) = (open().await?, open().await?);
    let whole = compress(&one, tensors.clone(), NUM_KV_HEADS).await?;
    let half = NUM_KV_HEADS / 2;
    let mut num_rows = 0;
    for (gpu, heads) in [(&one, 0..half), (&two, half..NUM_KV_HEADS)] {
        let part = compress(gpu, [shard(&tensors[0], heads.clone()), shard(&tensors[1], heads.clone())], half).await?;
        for (of_part, of_whole) in part.tensors.iter().zip(&whole.tensors) {
            assert!(*of_part == shard(of_whole, heads.clone()), "heads {heads:?} hold other bits");
        }
        let of_heads = |row: &usize| heads.contains(&(*row as u32 % NUM_KV_HEADS));
        let rows = (0..whole.kept.layers[0].positions.len()).filter(of_heads);
        let expected: Vec<_> = rows.map(|row| whole.kept.layers[0].positions[row].clone()).collect();
        assert!(part.kept.layers[0].positions == expected, "heads {heads:?} kept other tokens");
        num_rows += expected.len();
    }
    Ok(num_rows)
}

#[allow(dead_code, reason = "a test calls run")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let num_rows = pollster::block_on(run())?;
    println!("{num_rows} rows on two devices hold the bits of one device");
    Ok(())
}
