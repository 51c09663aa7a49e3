//! CPU peer of keynorm: the same compression on all cores, in the JSON that the other peers write.
//!
//! - `cpu-gather`: kept tokens are copied to new tensors, in their order, as PyTorch does.
//! - `cpu-fill`: in place; kept tokens beyond the budget move into the holes below it. Restored before every repetition.

mod kernels;
mod random;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use half::f16;
use kernels::{Element, Selection};
use rayon::prelude::*;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(version, about = "The compression of a KV cache on all cores, timed")]
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
    /// All cores without it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
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

const MIB: usize = 1 << 20;

struct Timer {
    scratch: Vec<u64>,
    repetitions: usize,
    warmup: usize,
}

impl Timer {
    /// Microseconds of each repetition; `prepare` and the flush of the caches are not timed.
    fn times(&mut self, mut prepare: impl FnMut(), mut timed: impl FnMut()) -> Vec<f64> {
        let mut times = Vec::new();
        for repetition in 0..self.warmup + self.repetitions {
            prepare();
            self.scratch.par_chunks_mut(MIB).for_each(|part| part.fill(repetition as u64));
            let start = Instant::now();
            timed();
            let us = start.elapsed().as_secs_f64() * 1e6;
            if repetition >= self.warmup {
                times.push(us);
            }
        }
        times.sort_by(f64::total_cmp);
        times
    }
}

fn percentile(ascending: &[f64], share: f64) -> f64 {
    let at = share * (ascending.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(ascending.len() - 1);
    ascending[low] + (ascending[high] - ascending[low]) * (at - low as f64)
}

struct Case<'a> {
    args: &'a Args,
    rows: usize,
    n: usize,
    keep: f64,
    element_bytes: usize,
}

impl Case<'_> {
    fn kept(&self) -> usize {
        ((self.keep * self.n as f64 - 1e-9).ceil() as usize).clamp(1, self.n)
    }

    fn row(&self, peer: &str, times: &[f64]) -> Value {
        let k = self.kept();
        let bytes = (self.n + 4 * k) * self.args.head_dim * self.element_bytes * self.rows;
        let us = percentile(times, 0.5);
        json!({
            "peer": peer, "mode": "cpu", "batch_rows": self.rows, "seq_len": self.n, "head_dim": self.args.head_dim,
            "dtype": self.args.dtype, "keep_ratio": self.keep, "kept": k, "us_median": us, "us_min": times[0],
            "us_max": times[times.len() - 1], "us_p10": percentile(times, 0.1), "us_p90": percentile(times, 0.9),
            "wall_us_median": us, "bytes_floor": bytes, "gb_s": bytes as f64 / us / 1e3, "error": null,
        })
    }
}

fn run_case<T: Element>(case: &Case<'_>, timer: &mut Timer) -> Result<Vec<Value>, String> {
    let (d, n, k) = (case.args.head_dim, case.n, case.kept());
    let keys: Vec<T> = random::tensor(1, case.rows * n, d);
    let values: Vec<T> = random::tensor(2, case.rows * n, d);
    let mut selection = Selection::new(case.rows, n, k);
    let zeros = || vec![T::default(); case.rows * k * d];
    let (mut kept_keys, mut kept_values) = (zeros(), zeros());
    let mut gather = || {
        selection.select(&keys, d);
        selection.gather(&keys, d, &mut kept_keys);
        selection.gather(&values, d, &mut kept_values);
    };
    gather();
    let gather_times = timer.times(|| {}, gather);
    check(&keys, &values, &kept_keys, &kept_values, (n, k, d))?;

    let (live_keys, live_values) = (std::cell::RefCell::new(keys.clone()), std::cell::RefCell::new(values.clone()));
    let restore = || {
        live_keys.borrow_mut().copy_from_slice(&keys);
        live_values.borrow_mut().copy_from_slice(&values);
    };
    let mut selection = Selection::new(case.rows, n, k);
    let fill_times = timer.times(restore, || {
        selection.select(&live_keys.borrow(), d);
        selection.fill(&mut live_keys.borrow_mut(), d);
        selection.fill(&mut live_values.borrow_mut(), d);
    });
    let front = |live: &[T]| live.chunks(n * d).flat_map(|row| row[..k * d].to_vec()).collect::<Vec<T>>();
    check(&keys, &values, &front(&live_keys.borrow()), &front(&live_values.borrow()), (n, k, d))?;
    Ok(vec![case.row("cpu-gather", &gather_times), case.row("cpu-fill", &fill_times)])
}

/// Each kept pair against the naive answer, as sets: keys are distinct, so a pair is found by its key.
fn check<T: Element>(
    keys: &[T],
    values: &[T],
    kept_keys: &[T],
    kept_values: &[T],
    (n, k, d): (usize, usize, usize),
) -> Result<(), String> {
    for (row, got) in kept_keys.chunks(k * d).enumerate() {
        let token = |tensor: &[T], i: usize| T::bits(&tensor[(row * n + i) * d..][..d]);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| {
            let norm = |i: usize| T::squared_norm(&keys[(row * n + i) * d..][..d]);
            norm(a).total_cmp(&norm(b)).then(a.cmp(&b))
        });
        let mut wanted: Vec<_> = order[..k].iter().map(|&i| (token(keys, i), token(values, i))).collect();
        let got_values = &kept_values[row * k * d..][..k * d];
        let mut found: Vec<_> =
            got.chunks(d).zip(got_values.chunks(d)).map(|(a, b)| (T::bits(a), T::bits(b))).collect();
        wanted.sort();
        found.sort();
        if wanted != found {
            return Err(format!("row {row} keeps the wrong pairs"));
        }
    }
    Ok(())
}

fn copy_rate(timer: &mut Timer) -> f64 {
    let source = vec![1u64; 256 * MIB / 8];
    let mut target = vec![0u64; source.len()];
    let copy =
        || target.par_chunks_mut(MIB / 8).zip(source.par_chunks(MIB / 8)).for_each(|(t, s)| t.copy_from_slice(s));
    2.0 * (256 * MIB) as f64 / percentile(&timer.times(|| {}, copy), 0.5) / 1e3
}

fn run(args: &Args) -> Result<(), String> {
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().map_err(|e| e.to_string())?;
    if args.repetitions == 0 || args.keep.iter().any(|k| !(*k > 0.0 && *k <= 1.0)) {
        return Err("expected at least 1 repetition and keep ratios above 0, at most 1".into());
    }
    let mut timer = Timer { scratch: vec![0; 256 * MIB / 8], repetitions: args.repetitions, warmup: args.warmup };
    let copy_gb_s = copy_rate(&mut timer);
    let mut rows = Vec::new();
    for &(num_rows, n) in &args.shapes {
        for &keep in &args.keep {
            let element_bytes = if args.dtype == "f32" { 4 } else { 2 };
            let case = Case { args, rows: num_rows, n, keep, element_bytes };
            let found = if args.dtype == "f32" {
                run_case::<f32>(&case, &mut timer)?
            } else {
                run_case::<f16>(&case, &mut timer)?
            };
            for row in &found {
                let (peer, us) = (row["peer"].as_str().unwrap_or(""), row["us_median"].as_f64().unwrap_or(0.0));
                println!("{peer:<10} {num_rows} x {n} keep {keep}: {us:.0} us");
            }
            rows.extend(found);
        }
    }
    let report = json!({
        "tool": "keynorm-peer-cpu", "device": std::env::consts::ARCH, "threads": rayon::current_num_threads(),
        "repetitions": args.repetitions, "warmup": args.warmup, "copy_gb_s": copy_gb_s, "rows": rows,
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
