//! A decode loop: tokens appended on the GPU, norms of new ones, compressions when the schedule says so, nothing read back
//! in between. The reference goes along. `KEYNORM_DECODE_STEPS` and `KEYNORM_DECODE_LAYERS` make it longer.

use keynorm::reference::{CacheRow, budget, key_norm, top_k};
use keynorm::{
    Bound, CacheState, Dtype, KvShape, KvView, Options, Policy, Schedule, Stages, Strides, Switch, TensorView, Trigger,
};

use crate::support::{BUILT, Gpu, download, gpu, number, shape, submit, upload};

const CAP: u32 = 512;
/// Most tokens of a step.
const MOST: u64 = 5;
const HEADS: u32 = 8;
const ROW_WORDS: u32 = 8;

/// Writes the tokens of a step at the ends of the rows, as a runtime's own shader does: words of a hash of where they
/// belong, made f16 numbers from 2^-3 to 1.
const APPEND: &str = "
struct Params { rows: u32, capacity: u32, lengths_base: u32, num_seen_base: u32, heads: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read> state_meta: array<u32>;
@group(0) @binding(4) var<storage, read> count: array<u32>;
fn mix(value: u32) -> u32 {
    var h = value ^ (value >> 16u);
    h *= 0x85ebca6bu;
    h ^= h >> 13u;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16u);
}
@compute @workgroup_size(64)
fn append_tokens(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / 8u;
    if row >= params.rows || id.y >= count[0] {
        return;
    }
    let slot = state_meta[params.lengths_base + row] + id.y;
    let position = state_meta[params.num_seen_base + row / params.heads] + id.y;
    let word = mix(mix(row * 8u + id.x % 8u) ^ position);
    let ix = (row * params.capacity + slot) * 8u + id.x % 8u;
    keys[ix] = (word & 0x8fff8fffu) | 0x30003000u;
    values[ix] = ~word;
}";

fn mix(value: u32) -> u32 {
    let mut h = value ^ (value >> 16);
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

fn words(row: u32, position: u32) -> impl Iterator<Item = u32> {
    (0..ROW_WORDS).map(move |i| mix(mix(row * ROW_WORDS + i) ^ position))
}

fn key_words(row: u32, position: u32) -> Vec<u32> {
    words(row, position).map(|w| (w & 0x8fff_8fff) | 0x3000_3000).collect()
}

struct Loop {
    shape: KvShape,
    policy: Policy,
    state: CacheState,
    bound: Bound,
    schedule: Schedule,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    count: wgpu::Buffer,
    append: (wgpu::ComputePipeline, wgpu::BindGroup),
    /// State and order keys of each row of all layers.
    rows: Vec<(CacheRow, Vec<u32>)>,
}

impl Loop {
    fn new(gpu: &Gpu, num_layers: u32, policy: Policy, subgroups: Switch) -> Self {
        let mut shape = shape(1, HEADS, CAP + MOST as u32, 16, Dtype::F16);
        shape.num_layers = num_layers;
        let bytes = vec![0; (num_layers * HEADS * shape.capacity * ROW_WORDS * 4) as usize];
        let (keys, values, count) = (upload(gpu, &bytes), upload(gpu, &bytes), upload(gpu, &[0; 16]));
        let plan = BUILT.compressor(gpu, &Options::with_subgroups(subgroups)).plan(&shape, &policy).expect("a plan");
        let (state, workspace) = (plan.create_state().expect("a state"), plan.create_workspace().expect("a workspace"));
        let strides = Strides::hnd(HEADS, shape.capacity, 16);
        let view =
            |buffer, layer: u32| TensorView { buffer, offset_bytes: u64::from(layer) * strides.batch * 2, strides };
        let views: Vec<_> =
            (0..num_layers).map(|l| KvView { keys: view(&keys, l), values: view(&values, l) }).collect();
        let bound = plan.bind(&gpu.device, &views, &state, &workspace).expect("a binding");
        let schedule = Schedule::new(&plan, Trigger::AtCap(CAP), &[0]).expect("a schedule");
        let append = append_kernel(gpu, &shape, [&keys, &values, state.meta(), &count]);
        let rows = vec![(CacheRow::new(0), Vec::new()); (num_layers * HEADS) as usize];
        Self { shape, policy, state, bound, schedule, keys, values, count, append, rows }
    }

    /// Appends some tokens to every row, and compresses where that is due; returns whether it was.
    fn step(&mut self, gpu: &Gpu, count: u32) -> bool {
        gpu.queue.write_buffer(&self.count, 0, &count.to_le_bytes());
        self.state.set_append_counts(&gpu.queue, 0, &[count]).expect("counts");
        let due = self.schedule.append(&[count]).expect("room");
        submit(gpu, |pass| {
            pass.set_pipeline(&self.append.0);
            pass.set_bind_group(0, &self.append.1, &[]);
            let num_rows = self.shape.num_layers * HEADS;
            pass.dispatch_workgroups((num_rows * ROW_WORDS).div_ceil(64), MOST as u32, 1);
            self.bound.record_append(pass, 0).expect("an append");
            if let Some(due) = due {
                self.bound.record_norms(pass, due.max_new).expect("norms");
                self.bound.record_stages(pass, due.max_len, Stages::FROM_NORMS).expect("a record");
            }
        });
        self.step_host(count, due.is_some());
        due.is_some()
    }

    fn step_host(&mut self, count: u32, compresses: bool) {
        for (ix, (row, norms)) in (0..).zip(&mut self.rows) {
            for _ in 0..count {
                let key = key_words(ix, row.num_seen);
                let norm = key_norm::squared_norm(&self.shape.keys, bytemuck::cast_slice(&key));
                norms.push(norm.expect("a number").to_bits() + 1);
                row.append(1);
            }
            if !compresses {
                continue;
            }
            let protected = |slot: u32| {
                let position = row.position_of(slot);
                position < self.policy.sinks || row.num_seen - position <= self.policy.recent
            };
            let order_keys: Vec<u32> =
                (0..).zip(norms.iter()).map(|(slot, &key)| if protected(slot) { 0 } else { key }).collect();
            let budgets =
                budget::head_budgets(&self.policy, ix / HEADS, std::slice::from_ref(&order_keys)).expect("a budget");
            let selection = top_k::keep(&order_keys, budgets[0], self.policy.order);
            *norms = selection.sources.iter().map(|&s| norms[s as usize]).collect();
            row.finish(&selection);
        }
    }

    /// Takes back some of the tokens of the step before, as far as no compression came between.
    fn reject(&mut self, gpu: &Gpu, count: u32) {
        self.state.set_append_counts(&gpu.queue, 1, &[count]).expect("counts");
        self.schedule.truncate(&[count]).expect("tokens of the last step");
        submit(gpu, |pass| self.bound.record_truncate(pass, 1).expect("a record"));
        for (row, norms) in &mut self.rows {
            row.truncate(count);
            norms.truncate(row.len as usize);
        }
    }

    /// Compares lengths, positions and every row of both tensors; returns a hash of them all.
    fn compare(&self, gpu: &Gpu, step: u32) -> u64 {
        let kept = pollster::block_on(self.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
        let (keys, values) = (download(gpu, &self.keys), download(gpu, &self.values));
        let (keys, values): (&[u32], &[u32]) = (bytemuck::cast_slice(&keys), bytemuck::cast_slice(&values));
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |word: u32| hash = (hash ^ u64::from(word)).wrapping_mul(0x100_0000_01b3);
        for (ix, (row, _)) in (0..).zip(&self.rows) {
            let (layer, head) = ((ix / HEADS) as usize, (ix % HEADS) as usize);
            let positions: Vec<u32> = (0..row.len).map(|s| row.position_of(s)).collect();
            assert_eq!(kept.layers[layer].positions[head], positions, "step {step}: layer {layer} head {head}");
            assert_eq!(kept.layers[layer].num_seen[0], row.num_seen, "step {step}: tokens seen of layer {layer}");
            for (slot, &position) in (0..).zip(&positions) {
                let at = ((ix * self.shape.capacity + slot) * ROW_WORDS) as usize..;
                let (key, value) = (&keys[at.clone()][..ROW_WORDS as usize], &values[at][..ROW_WORDS as usize]);
                assert_eq!(key, key_words(ix, position), "step {step}: key {slot} of row {ix}");
                assert!(
                    words(ix, position).map(|w| !w).eq(value.iter().copied()),
                    "step {step}: value {slot} of row {ix}"
                );
                add(position);
                key.iter().chain(value).for_each(|&word| add(word));
            }
        }
        hash
    }
}

fn append_kernel(gpu: &Gpu, shape: &KvShape, buffers: [&wgpu::Buffer; 4]) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("append_tokens"),
        source: wgpu::ShaderSource::Wgsl(APPEND.into()),
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("append_tokens"),
        layout: None,
        module: &module,
        entry_point: Some("append_tokens"),
        compilation_options: Default::default(),
        cache: None,
    });
    let o = keynorm::StateOffsets::of(shape);
    let params = [shape.num_layers * HEADS, shape.capacity, o.lengths, o.num_seen, HEADS, 0, 0, 0];
    let params = wgpu::util::DeviceExt::create_buffer_init(
        &gpu.device,
        &wgpu::util::BufferInitDescriptor {
            label: Some("append_tokens"),
            contents: bytemuck::cast_slice(&params),
            usage: wgpu::BufferUsages::UNIFORM,
        },
    );
    let entries: Vec<_> = (0..)
        .zip([&params].into_iter().chain(buffers))
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("append_tokens"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    (pipeline, group)
}

/// Resident memory of this process, KiB, where the system says.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

/// Runs the loop; returns the hash of all that it leaves, and how many compressions there were.
fn run(num_layers: u32, steps: u32, subgroups: Switch) -> (u64, u32) {
    let gpu = gpu();
    let policy = Policy { sinks: 4, recent: 64, skip_layers: Vec::new(), ..Policy::streaming(CAP) };
    let mut decode = Loop::new(gpu, num_layers, policy, subgroups);
    let mut rng = crate::support::Rng(11);
    let (mut compressions, mut settled) = (0, None);
    for step in 0..steps {
        // A prompt of some size, then steps of mixed ones.
        let count = if step < 100 { MOST } else { 1 + rng.below(MOST) };
        let compressed = decode.step(gpu, count as u32);
        compressions += u32::from(compressed);
        if step % 3 == 2 && !compressed {
            decode.reject(gpu, rng.below(count + 1) as u32);
        }
        if step % 100 == 99 {
            decode.compare(gpu, step);
        }
        if step == steps / 5 {
            settled = resident_kib();
        }
    }
    if let (Some(before), Some(after)) = (settled, resident_kib()) {
        println!("resident: {before} KiB after a fifth, {after} KiB after {steps} steps");
        // Other tests of this process run beside this one in short runs.
        assert!(steps < 2000 || after < before + before / 10, "memory grew from {before} to {after} KiB");
    }
    (decode.compare(gpu, steps), compressions)
}

#[test]
fn a_decode_loop_stays_with_the_reference() {
    let steps = number("KEYNORM_DECODE_STEPS", 400) as u32;
    let layers = number("KEYNORM_DECODE_LAYERS", 4) as u32;
    let (hash, compressions) = run(layers, steps, Switch::Auto);
    println!(
        "{layers} layers x {HEADS} heads, cap {CAP}: {steps} steps, {compressions} compressions, hash {hash:016x}"
    );
    assert!(compressions > steps / 8, "{compressions} compressions in {steps} steps");
    assert_eq!(run(layers, steps, Switch::On).0, hash, "as a GPU takes rows they are left the same");
}
