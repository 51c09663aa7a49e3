//! What the memory of the device gives: copy and read rates, measured in the same run; and the flush of its caches.

use crate::gpu::{Clock, Gpu, Kernel, Result, micros};
use crate::report::{Rates, median};

pub const SOURCE: &str = include_str!("shaders/rates.wgsl");
/// Bytes that a workgroup of the kernels with eight loads covers; those with four cover half.
pub const GROUP_BYTES: u64 = 8 * 256 * 16;

pub fn num_workgroups(bytes: u64, group_bytes: u64) -> u32 {
    u32::try_from(bytes / group_bytes).unwrap_or(u32::MAX)
}

/// How the L2 is emptied before each repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FlushMode {
    /// Scratch is written, then read: nothing of the cache under test is left and no line is waiting to be written back.
    Clean,
    /// Scratch is written only; the timed pass pays for writing it back.
    Dirty,
}

impl FlushMode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Dirty => "dirty",
        }
    }
}

/// Scratch above the size of the last-level cache.
#[derive(Debug)]
pub struct Flush {
    write: Kernel,
    read: Kernel,
    write_group: wgpu::BindGroup,
    read_group: wgpu::BindGroup,
    pub bytes: u64,
    pub mode: FlushMode,
}

impl Flush {
    pub fn new(gpu: &Gpu, mib: u64, mode: FlushMode) -> Result<Self> {
        let bytes = (mib << 20).clamp(GROUP_BYTES, gpu.window_bytes());
        let scratch = gpu.buffer("flush scratch", bytes)?;
        let never = gpu.buffer("flush sink", 256)?;
        let (write, read) = (Kernel::new(gpu, SOURCE, "write_8"), Kernel::new(gpu, SOURCE, "read_8"));
        let write_group = write.group(gpu, &[(1, scratch.as_entire_binding())]);
        let read_group = read.group(gpu, &[(0, scratch.as_entire_binding()), (1, never.as_entire_binding())]);
        Ok(Self { write, read, write_group, read_group, bytes, mode })
    }

    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let groups = num_workgroups(self.bytes, GROUP_BYTES);
        self.write.dispatch(&mut pass, &self.write_group, groups);
        if self.mode == FlushMode::Clean {
            self.read.dispatch(&mut pass, &self.read_group, groups);
        }
    }
}

/// Measures on buffers as large as a binding can be, up to 1 GiB.
pub fn measure(gpu: &Gpu, clock: &Clock, repetitions: usize) -> Result<Rates> {
    // No more than a grid of one dimension covers in the smaller pieces.
    let bytes = gpu.window_bytes().min(65_534 * (GROUP_BYTES / 2));
    let source = gpu.buffer("rate source", bytes)?;
    let sink = gpu.buffer("rate sink", bytes)?;
    let fill = Kernel::new(gpu, SOURCE, "write_8");
    let fill_group = fill.group(gpu, &[(1, source.as_entire_binding())]);
    let mut encoder = gpu.encoder();
    fill.dispatch(
        &mut encoder.begin_compute_pass(&Default::default()),
        &fill_group,
        num_workgroups(bytes, GROUP_BYTES),
    );
    gpu.finish(encoder)?;

    let kernel_rate = |entry: &str, group_bytes: u64, traffic: u64| {
        let kernel = Kernel::new(gpu, SOURCE, entry);
        let group = kernel.group(gpu, &[(0, source.as_entire_binding()), (1, sink.as_entire_binding())]);
        rate(gpu, clock, repetitions, traffic, true, |encoder| {
            kernel.dispatch(&mut clock.pass(encoder, 0), &group, num_workgroups(bytes, group_bytes));
        })
    };
    let copies = [kernel_rate("copy_4", GROUP_BYTES / 2, 2 * bytes)?, kernel_rate("copy_8", GROUP_BYTES, 2 * bytes)?];
    let read_gb_s = kernel_rate("read_8", GROUP_BYTES, bytes)?;
    let marks = gpu.has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
    let copy_buffer_gb_s = rate(gpu, clock, repetitions, 2 * bytes, marks, |encoder| {
        if marks {
            clock.mark(encoder, 0);
        }
        encoder.copy_buffer_to_buffer(&source, 0, &sink, 0, bytes);
        if marks {
            clock.mark(encoder, 1);
        }
    })?;
    let touch = Kernel::new(gpu, SOURCE, "touch");
    let touch_group = touch.group(gpu, &[(1, sink.as_entire_binding())]);
    let least = |encoder: &mut wgpu::CommandEncoder| {
        touch.dispatch(&mut clock.pass(encoder, 0), &touch_group, 1);
    };
    let least_us = time(gpu, clock, repetitions, true, least)?;
    Ok(Rates {
        bytes,
        least_us: Some(least_us),
        copy_kernel_gb_s: copies[0].max(copies[1]),
        copy_buffer_gb_s,
        read_gb_s,
        torch_copy_gb_s: None,
    })
}

/// Median rate of what `record` records, GB/s; by the host's clock where the device has none for it.
fn rate(
    gpu: &Gpu,
    clock: &Clock,
    repetitions: usize,
    traffic: u64,
    stamped: bool,
    record: impl Fn(&mut wgpu::CommandEncoder),
) -> Result<f64> {
    time(gpu, clock, repetitions, stamped, record).map(|us| traffic as f64 / us / 1e3)
}

/// Median time of what `record` records, microseconds; by the host's clock where the device has none for it.
fn time(
    gpu: &Gpu,
    clock: &Clock,
    repetitions: usize,
    stamped: bool,
    record: impl Fn(&mut wgpu::CommandEncoder),
) -> Result<f64> {
    let stamped = stamped && clock.exists();
    let mut times = Vec::new();
    for repetition in 0..repetitions + 2 {
        let mut encoder = gpu.encoder();
        record(&mut encoder);
        if stamped {
            clock.resolve(&mut encoder, 1);
        }
        let start = std::time::Instant::now();
        gpu.finish(encoder)?;
        let time = if stamped { clock.read(gpu, 1)?[0] } else { Some(micros(start)) };
        if repetition >= 2 {
            times.extend(time);
        }
    }
    median(&mut times).ok_or_else(|| "the device's clock stands still".into())
}
