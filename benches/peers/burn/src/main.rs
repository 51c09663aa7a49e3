//! Burn peer of keynorm: the same compression with Burn's tensor operations on its wgpu backend, in the JSON that the
//! other peers write. Norm in f32, `argsort`, one `select` of the flattened keys and values each, so out of place, as
//! PyTorch's tuned variant. (`argtopk` would fit better, but Burn 0.22.1 returned invalid slots on llvmpipe for k of half
//! a row.) Burn sorts on the host, so all times are the host's, from an idle to an idle device. A scratch write empties
//! the caches before each repetition.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::{DType, Device, DeviceKind, Distribution, Int, Tensor, TensorData};
use clap::Parser;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(version, about = "The compression of a KV cache with Burn on wgpu, timed")]
struct Args {
    /// ROWSxN or BxHxN.
    #[arg(long, value_delimiter = ',', value_parser = parse_shape, default_value = "8x1024,8x4096")]
    shapes: Vec<(usize, usize)>,
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    /// f16 or f32.
    #[arg(long, default_value = "f16", value_parser = ["f16", "f32"])]
    dtype: String,
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.5,0.9")]
    keep: Vec<f64>,
    #[arg(long, default_value_t = 20)]
    repetitions: usize,
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// MiB of scratch that are written before each repetition.
    #[arg(long, default_value_t = 256)]
    flush_mb: usize,
    #[arg(long)]
    output: Option<PathBuf>,
}

fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match numbers.as_deref() {
        Ok([rows @ .., n]) if (1..=2).contains(&rows.len()) && *n > 0 => Ok((rows.iter().product(), *n)),
        _ => Err("expected ROWSxN or BxHxN".into()),
    }
}

/// Keys and values as [rows * n, head_dim].
#[derive(Clone)]
struct Cache {
    keys: Tensor<2>,
    values: Tensor<2>,
    /// row * n, as [rows, 1].
    offsets: Tensor<2, Int>,
    rows: usize,
    n: usize,
}

fn squared_norms(cache: &Cache) -> Tensor<2> {
    cache.keys.clone().cast(DType::F32).square().sum_dim(1).reshape([cache.rows, cache.n])
}

/// Kept keys, kept values, their places in the flattened tensors.
fn compress(cache: &Cache, k: usize) -> (Tensor<2>, Tensor<2>, Tensor<1, Int>) {
    let slots = squared_norms(cache).argsort(1).narrow(1, 0, k);
    let flat = (slots + cache.offsets.clone()).reshape([cache.rows * k]);
    (cache.keys.clone().select(0, flat.clone()), cache.values.clone().select(0, flat.clone()), flat)
}

fn floats(data: TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

/// k distinct tokens a row, none above the k-th lowest norm, copied exactly.
fn check(cache: &Cache, k: usize) -> Result<(), String> {
    let (kept_keys, kept_values, flat) = compress(cache, k);
    let norms = floats(squared_norms(cache).into_data());
    let places: Vec<usize> = flat.into_data().iter::<i64>().map(|i| i as usize).collect();
    for (row, places) in places.chunks(k).enumerate() {
        let row_norms = &norms[row * cache.n..][..cache.n];
        let mut ascending = row_norms.to_vec();
        ascending.sort_by(f32::total_cmp);
        let mut distinct = places.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let in_row = places.iter().all(|p| p / cache.n == row);
        if distinct.len() != k || !in_row || places.iter().any(|&p| norms[p] > ascending[k - 1] * (1.0 + 1e-5)) {
            return Err(format!("row {row} keeps the wrong tokens"));
        }
    }
    for (got, source) in [(kept_keys, &cache.keys), (kept_values, &cache.values)] {
        let (got, source) = (floats(got.into_data()), floats(source.clone().into_data()));
        let d = got.len() / places.len();
        if places.iter().enumerate().any(|(i, &p)| got[i * d..][..d] != source[p * d..][..d]) {
            return Err("copied rows differ from the selected ones".into());
        }
    }
    Ok(())
}

fn percentile(ascending: &[f64], share: f64) -> f64 {
    let at = share * (ascending.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(ascending.len() - 1);
    ascending[low] + (ascending[high] - ascending[low]) * (at - low as f64)
}

/// Microseconds of every repetition, ascending.
fn times(args: &Args, device: &Device, cache: &Cache, k: usize) -> Result<Vec<f64>, String> {
    let sync = || device.sync().map_err(|e| format!("{e:?}"));
    let mut times = Vec::new();
    let mut scratch = Tensor::<1>::zeros([args.flush_mb << 18], device);
    for repetition in 0..args.warmup + args.repetitions {
        scratch = scratch + 1.0;
        device.flush().map_err(|e| format!("{e:?}"))?;
        sync()?;
        let start = Instant::now();
        let kept = compress(cache, k);
        sync()?;
        if repetition >= args.warmup {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        drop(kept);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn run_case(args: &Args, device: &Device, (rows, n): (usize, usize), keep: f64) -> Result<Value, String> {
    let dtype = if args.dtype == "f32" { DType::F32 } else { DType::F16 };
    let d = args.head_dim;
    device.seed(20_240_611);
    let random = || Tensor::<2>::random([rows * n, d], Distribution::Normal(0.0, 1.0), device).cast(dtype);
    let offsets = Tensor::<1, Int>::arange_step(0..(rows * n) as i64, n, device).reshape([rows, 1]);
    let cache = Cache { keys: random(), values: random(), offsets, rows, n };
    let k = ((keep * n as f64 - 1e-9).ceil() as usize).clamp(1, n);
    check(&cache, k)?;
    let times = times(args, device, &cache, k)?;
    let us = percentile(&times, 0.5);
    let bytes = (n + 4 * k) * d * if args.dtype == "f32" { 4 } else { 2 } * rows;
    Ok(json!({
        "peer": "burn-argsort", "mode": "wgpu", "batch_rows": rows, "seq_len": n, "head_dim": d, "dtype": args.dtype,
        "keep_ratio": keep, "kept": k, "us_median": us, "us_min": times[0], "us_max": times[times.len() - 1],
        "us_p10": percentile(&times, 0.1), "us_p90": percentile(&times, 0.9), "wall_us_median": us,
        "bytes_floor": bytes, "gb_s": bytes as f64 / us / 1e3, "error": null,
    }))
}

fn run(args: &Args) -> Result<(), String> {
    if args.repetitions == 0 || args.keep.iter().any(|k| !(*k > 0.0 && *k <= 1.0)) {
        return Err("expected at least 1 repetition and keep ratios above 0, at most 1".into());
    }
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let mut rows = Vec::new();
    for &shape in &args.shapes {
        for &keep in &args.keep {
            let row = run_case(args, &device, shape, keep)?;
            let us = row["us_median"].as_f64().unwrap_or(0.0);
            println!("burn-argsort {} x {} keep {keep}: {us:.0} us", shape.0, shape.1);
            rows.push(row);
        }
    }
    let report = json!({
        "tool": "keynorm-peer-burn", "device": format!("{device:?}"), "repetitions": args.repetitions,
        "warmup": args.warmup, "rows": rows,
    });
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{report:#}\n")).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
