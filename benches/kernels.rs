//! Each stage alone beside a copy of equal traffic, for regressions on one machine; `examples/bench` compares machines.
//!
//! Times are GPU timestamps (wall clock where the device has none) from restored data and empty caches. Throughput counts
//! the bytes that a stage cannot avoid. Results are checked against the reference first. `cargo test --benches` runs each
//! once.

#[path = "../examples/bench/case.rs"]
#[allow(dead_code, reason = "the tool times whole compressions too")]
mod case;
#[path = "../examples/bench/check.rs"]
mod check;
#[path = "../examples/bench/data.rs"]
mod data;
#[path = "../examples/bench/gpu.rs"]
#[allow(dead_code, reason = "the tool measures rates of copies too")]
mod gpu;
#[path = "../examples/bench/rates.rs"]
#[allow(dead_code, reason = "the tool measures rates of copies too")]
mod rates;
#[path = "../examples/bench/report.rs"]
#[allow(dead_code, reason = "the tool writes reports")]
mod report;

use std::time::Duration;

use case::{Case, Prepared};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use data::{Data, Norms};
use gpu::{Clock, Gpu, Kernel, Result};
use keynorm::{Compressor, Dtype, KvShape, Options, Order, Score, Selector, Stages, TensorSpec};
use rates::{Flush, FlushMode, GROUP_BYTES, SOURCE, num_workgroups};

/// Repetitions behind one sample at most: restoring takes longer than what is timed, and criterion does not know.
const MAX_REPETITIONS: u64 = 4;
const SPANS: [Stages; 3] = [Stages::SCORE, Stages::SELECT, Stages::COMPACT];
const NAMES: [&str; 3] = ["score", "select", "compact"];

/// A copy whose bytes read and written add up to a given traffic: the ceiling beside a stage.
struct EqualCopy {
    kernel: Kernel,
    group: wgpu::BindGroup,
    num_workgroups: u32,
}

impl EqualCopy {
    fn new(gpu: &Gpu, traffic: u64) -> Result<Self> {
        let bytes = (traffic / 2).next_multiple_of(GROUP_BYTES / 2).min(gpu.window_bytes());
        let (source, sink) = (gpu.buffer("copy source", bytes)?, gpu.buffer("copy sink", bytes)?);
        let kernel = Kernel::new(gpu, SOURCE, "copy_4");
        let group = kernel.group(gpu, &[(0, source.as_entire_binding()), (1, sink.as_entire_binding())]);
        Ok(Self { kernel, group, num_workgroups: num_workgroups(bytes, GROUP_BYTES / 2) })
    }

    /// Microseconds of one copy with empty caches.
    fn time(&self, gpu: &Gpu, clock: &Clock, flush: &Flush) -> Result<Option<f64>> {
        let mut encoder = gpu.encoder();
        flush.record(&mut encoder);
        gpu.finish(encoder)?;
        let mut encoder = gpu.encoder();
        self.kernel.dispatch(&mut clock.pass(&mut encoder, 0), &self.group, self.num_workgroups);
        if clock.exists() {
            clock.resolve(&mut encoder, 1);
        }
        let wall = gpu.finish(encoder)?;
        if clock.exists() { Ok(clock.read(gpu, 1)?[0]) } else { Ok(Some(wall)) }
    }
}

struct Tools {
    gpu: Gpu,
    clock: Clock,
    flush: Flush,
}

fn add(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    traffic: u64,
    mut time: impl FnMut() -> Result<Option<f64>>,
) {
    group.throughput(Throughput::Bytes(traffic));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut times = Vec::new();
            for _ in 0..iterations.min(MAX_REPETITIONS) {
                match time() {
                    Ok(us) => times.extend(us),
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            let us = report::median(&mut times).unwrap_or_else(|| panic!("{name}: the device's clock stands still"));
            Duration::from_secs_f64(us * 1e-6 * iterations as f64)
        });
    });
}

fn bench_order(group: &mut BenchmarkGroup<'_, WallTime>, tools: &Tools, data: &Data, order: Order) -> Result<()> {
    let Tools { gpu, clock, flush } = tools;
    let compressor = Compressor::new(&gpu.device, Options::default()).map_err(|e| e.to_string())?;
    let case =
        Case { keep_ratio: 0.5, order, selector: Selector::Auto, score: Score::KeyNorm, passes: false, cached: false };
    let prepared = Prepared::new(gpu, &compressor, data, case)?;
    let (_, found) = prepared.repeat(clock, flush, &[Stages::ALL])?;
    check::check(&prepared, found)?;
    let tokens = u64::from(data.shape.rows_per_layer()) * u64::from(data.shape.capacity);
    let row_bytes = u64::from(data.shape.keys.row_bytes());
    let traffic = [tokens * row_bytes, tokens * 4, u64::from(found.num_moved) * row_bytes * 4];
    for (i, (stage, bytes)) in NAMES.iter().zip(traffic).enumerate() {
        add(group, &format!("{stage}/{order:?}"), bytes, || {
            if clock.exists() {
                let (times, again) = prepared.repeat(clock, flush, &SPANS)?;
                return if again == found { Ok(times[i]) } else { Err("a repetition left other bits".into()) };
            }
            prepared.repeat_wall(flush, &SPANS[..=i]).map(|(us, _)| Some(us))
        });
        let copy = EqualCopy::new(gpu, bytes)?;
        add(group, &format!("{stage}/{order:?}/copy of equal traffic"), bytes, || copy.time(gpu, clock, flush));
    }
    Ok(())
}

fn bench_shape(criterion: &mut Criterion, tools: &Tools, rows: u32, seq_len: u32) -> Result<()> {
    let spec = TensorSpec::new(Dtype::F16, 128);
    let shape =
        KvShape { num_layers: 1, batch_size: 1, num_kv_heads: rows, capacity: seq_len, keys: spec, values: spec };
    let data = Data::new(&tools.gpu, (shape, shape.capacity), None, Norms::Wide)?;
    let mut group = criterion.benchmark_group(format!("{rows}x{seq_len}x128 f16 keep 0.5"));
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(500));
    for order in [Order::Fill, Order::Positional] {
        bench_order(&mut group, tools, &data, order)?;
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let gpu = Gpu::open(None)?;
    println!("adapter: {} ({})", gpu.info.name, gpu.info.driver_info);
    let (shapes, flush_mib): (&[_], _) =
        if gpu.is_cpu() { (&[(4, 512), (1, 20_000)], 16) } else { (&[(8, 32_768), (256, 4096)], 256) };
    let tools = Tools { clock: Clock::new(&gpu), flush: Flush::new(&gpu, flush_mib, FlushMode::Clean)?, gpu };
    let mut criterion = Criterion::default().configure_from_args();
    for &(rows, seq_len) in shapes {
        bench_shape(&mut criterion, &tools, rows, seq_len)?;
    }
    criterion.final_summary();
    Ok(())
}
