//! A host embeds keynorm: its own device, its own buffers, its own pass. Everything else belongs to the host too.

use keynorm::{Compressor, Dtype, KvShape, KvView, Options, Policy, TensorSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The host's device. keynorm works at WebGPU's default limits and without any feature; these let it do better.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: keynorm::optional_features(&adapter),
        required_limits: keynorm::recommended_limits(&adapter),
        ..Default::default()
    }))?;

    // The host's cache of one layer: f16 [batch 1, 2 KV heads, 16 tokens, 64], keys and values in a buffer each.
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 2, capacity: 16, keys: spec, values: spec };
    let cache = |label| {
        let size = u64::from(shape.rows_per_layer()) * u64::from(shape.capacity) * u64::from(spec.row_bytes());
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
    };
    let (keys, values) = (cache("keys"), cache("values"));
    // Tokens of falling norm: the last ones are the lowest.
    let tokens = (0..2 * 16).flat_map(|t| [half::f16::from_f32(16.0 - (t % 16) as f32); 64]);
    queue.write_buffer(&keys, 0, bytemuck::cast_slice(&tokens.collect::<Vec<_>>()));

    // Once per device, once per geometry, once per set of buffers.
    let compressor = Compressor::new(&device, Options::default())?;
    let plan = compressor.plan(&shape, &Policy::kvpress(0.25))?;
    let (state, workspace) = (plan.create_state()?, plan.create_workspace()?);
    let bound = plan.bind(&device, &[KvView::hnd(&shape, &keys, &values)], &state, &workspace)?;
    state.set_lengths(&queue, &[16])?; // after a prefill of 16 tokens

    // In the host's own pass, between its own dispatches: this only records.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        bound.record(&mut pass, 16)?; // 16: no row is longer
    }
    queue.submit([encoder.finish()]);

    // A runtime leaves lengths and positions on the GPU, where its attention reads them; here they are shown.
    let kept = pollster::block_on(state.read(&device, &queue))?;
    for (head, positions) in kept.layers[0].positions.iter().enumerate() {
        println!("head {head} keeps {} of 16 tokens, from positions {positions:?}", positions.len());
    }
    Ok(())
}
