//! A device with timestamps where it has them, and the few GPU objects that the tool's own shaders need.

use std::time::Instant;

use wgpu::util::DeviceExt as _;

pub type Result<T, E = String> = std::result::Result<T, E>;

/// Most bytes that one dispatch of the tool's own shaders binds.
const MAX_WINDOW_BYTES: u64 = 1 << 30;

#[derive(Debug)]
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
}

pub fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
        .into_iter()
        .filter(|a| a.get_info().backend != wgpu::Backend::Noop)
        .collect()
}

pub const NO_ADAPTER: &str = "no adapter found: install a Vulkan driver (on Linux scripts/with-adapter does)";

/// Adapters by number, a line each.
pub fn list(all: &[wgpu::Adapter]) -> String {
    let line = |(i, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        let driver = format!("{} {}", info.driver, info.driver_info);
        format!("{i}: {} ({:?}, {}, {driver})\n", info.name, info.device_type, info.backend)
    };
    all.iter().enumerate().map(line).collect()
}

/// The adapter whose number or part of whose name is `wanted`; without `wanted` a discrete GPU before others.
fn pick(wanted: Option<&str>) -> Result<wgpu::Adapter> {
    let mut all = adapters();
    if all.is_empty() {
        return Err(NO_ADAPTER.into());
    }
    let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        _ => 3,
    };
    let ix = match wanted {
        None => (0..all.len()).min_by_key(|&i| rank(&all[i])),
        Some(text) => text.parse().ok().filter(|&i| i < all.len()).or_else(|| {
            let lower = text.to_lowercase();
            all.iter().position(|a| a.get_info().name.to_lowercase().contains(&lower))
        }),
    };
    let none = || format!("no adapter matches --adapter {}; there are\n{}", wanted.unwrap_or(""), list(&all));
    let ix = ix.ok_or_else(none)?;
    Ok(all.swap_remove(ix))
}

impl Gpu {
    pub fn open(wanted: Option<&str>) -> Result<Self> {
        let adapter = pick(wanted)?;
        let timestamps = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: keynorm::optional_features(&adapter) | (adapter.features() & timestamps),
            required_limits: keynorm::recommended_limits(&adapter),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| e.to_string())?;
        device.on_uncaptured_error(std::sync::Arc::new(|error: wgpu::Error| {
            let text = error.to_string();
            let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            eprintln!("error: {}", lines.join(" "));
            std::process::exit(2);
        }));
        Ok(Self { device, queue, info: adapter.get_info() })
    }

    pub fn is_cpu(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Bytes that one dispatch of the tool's own shaders binds at most: a multiple of every alignment and share.
    pub fn window_bytes(&self) -> u64 {
        MAX_WINDOW_BYTES.min(self.device.limits().max_storage_buffer_binding_size >> 20 << 20)
    }

    /// The windows (first byte, bytes) of a tensor.
    pub fn windows(&self, bytes: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let window = self.window_bytes();
        (0..bytes.div_ceil(window)).map(move |i| (i * window, window.min(bytes - i * window)))
    }

    pub fn has(&self, feature: wgpu::Features) -> bool {
        self.device.features().contains(feature)
    }

    /// A zeroed buffer that shaders and copies may use; an error where the device has no memory for it.
    pub fn buffer(&self, label: &str, size: u64) -> Result<wgpu::Buffer> {
        let limit = self.device.limits().max_buffer_size;
        if size > limit {
            return Err(format!("{label} takes {size} bytes, above the device's buffer limit of {limit}"));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match pollster::block_on(memory.pop()) {
            Some(_) => Err(format!("out of device memory: {label} takes {size} bytes")),
            None => Ok(buffer),
        }
    }

    pub fn uniform(&self, words: &[u32]) -> wgpu::Buffer {
        let mut words = words.to_vec();
        words.resize(words.len().next_multiple_of(4), 0);
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("bench.params"),
            contents: bytemuck::cast_slice(&words),
            usage: wgpu::BufferUsages::UNIFORM,
        })
    }

    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits and waits; returns the microseconds from the call to the idle device.
    pub fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<f64> {
        let start = Instant::now();
        self.queue.submit([encoder.finish()]);
        self.wait()?;
        Ok(micros(start))
    }

    pub fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map(drop).map_err(|e| e.to_string())
    }

    pub fn read(&self, buffer: &wgpu::Buffer) -> Result<Vec<u32>> {
        pollster::block_on(keynorm::kept::read_words(&self.device, &self.queue, buffer)).map_err(|e| e.to_string())
    }

    /// Copies `range` of a buffer to the host.
    pub fn read_range(&self, buffer: &wgpu::Buffer, range: std::ops::Range<u64>) -> Result<Vec<u32>> {
        let size = range.end - range.start;
        let part = self.buffer("bench.read", size)?;
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, range.start, &part, 0, size);
        self.queue.submit([encoder.finish()]);
        self.read(&part)
    }
}

pub fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// One entry point of the tool's own shaders, with the layout that wgpu derives from it.
#[derive(Debug)]
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
}

impl Kernel {
    pub fn new(gpu: &Gpu, source: &str, entry: &str) -> Self {
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("bench"),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: None,
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        Self { pipeline }
    }

    pub fn group(&self, gpu: &Gpu, bindings: &[(u32, wgpu::BindingResource<'_>)]) -> wgpu::BindGroup {
        let entries: Vec<_> = bindings
            .iter()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: *binding, resource: resource.clone() })
            .collect();
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("bench"),
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }

    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, group: &wgpu::BindGroup, num_workgroups: u32) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(num_workgroups, 1, 1);
    }
}

/// A part of a buffer as a binding.
pub fn part(buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
}

/// Timestamps at the begin and end of passes.
#[derive(Debug)]
pub struct Clock {
    set: Option<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    period_ns: f64,
}

/// Most passes that one submission times.
const MAX_SPANS: u32 = 4;

impl Clock {
    pub fn new(gpu: &Gpu) -> Self {
        let set = gpu.has(wgpu::Features::TIMESTAMP_QUERY).then(|| {
            gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("bench.clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * MAX_SPANS,
            })
        });
        let resolved = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("bench.clock"),
            size: u64::from(MAX_SPANS) * 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Self { set, resolved, period_ns: f64::from(gpu.queue.get_timestamp_period()) }
    }

    pub fn exists(&self) -> bool {
        self.set.is_some()
    }

    /// A compute pass timed as span `span`.
    pub fn pass<'a>(&self, encoder: &'a mut wgpu::CommandEncoder, span: u32) -> wgpu::ComputePass<'a> {
        self.timed(encoder, Some(2 * span), Some(2 * span + 1))
    }

    /// The first pass of a span of several.
    pub fn begin<'a>(&self, encoder: &'a mut wgpu::CommandEncoder, span: u32) -> wgpu::ComputePass<'a> {
        self.timed(encoder, Some(2 * span), None)
    }

    /// The last.
    pub fn end<'a>(&self, encoder: &'a mut wgpu::CommandEncoder, span: u32) -> wgpu::ComputePass<'a> {
        self.timed(encoder, None, Some(2 * span + 1))
    }

    fn timed<'a>(
        &self,
        encoder: &'a mut wgpu::CommandEncoder,
        begin: Option<u32>,
        end: Option<u32>,
    ) -> wgpu::ComputePass<'a> {
        let timestamp_writes = self.set.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: begin,
            end_of_pass_write_index: end,
        });
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("bench.timed"), timestamp_writes })
    }

    /// Marks the begin (0) or end (1) of span 0 outside passes; the device must have the feature for it.
    pub fn mark(&self, encoder: &mut wgpu::CommandEncoder, index: u32) {
        if let Some(set) = &self.set {
            encoder.write_timestamp(set, index);
        }
    }

    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder, num_spans: u32) {
        if let Some(set) = &self.set {
            encoder.resolve_query_set(set, 0..2 * num_spans, &self.resolved, 0);
        }
    }

    /// Microseconds of each span; `None` for one whose end is not after its begin.
    pub fn read(&self, gpu: &Gpu, num_spans: usize) -> Result<Vec<Option<f64>>> {
        let words = gpu.read(&self.resolved)?;
        let ticks: Vec<u64> = words.chunks_exact(2).map(|w| u64::from(w[0]) | (u64::from(w[1]) << 32)).collect();
        let span = |t: &[u64]| (t[1] > t[0]).then(|| (t[1] - t[0]) as f64 * self.period_ns / 1e3);
        Ok(ticks.chunks_exact(2).take(num_spans).map(span).collect())
    }
}
