//! `bench run`: every case of every shape, checked and timed on one device.

use indicatif::{ProgressBar, ProgressStyle};
use keynorm::{Compressor, Options};

use crate::case::{Bench, new_row};
use crate::cli::RunArgs;
use crate::data::Data;
use crate::design::H100_COPY_GB_S;
use crate::gpu::{Clock, Gpu, Result};
use crate::plot::{self, Filter};
use crate::rates::{self, Flush};
use crate::report::{Adapter, PeerReport, Rates, Report, Row, TOOL};
use crate::{about, cases, files, markdown, tables};

pub fn run(args: &RunArgs) -> Result<()> {
    let groups = cases::groups(args)?;
    let outputs: Vec<_> =
        [&args.output_md, &args.output_csv, &args.output_json, &args.plot].into_iter().flatten().collect();
    for (ix, path) in outputs.iter().enumerate() {
        if outputs[..ix].iter().any(|other| files::are_one(other, path)) {
            return Err(format!("{}: given for two outputs", path.display()));
        }
        files::check_writable(path)?;
    }
    let peers = args.peers.iter().map(|p| files::read_peer(p)).collect::<Result<Vec<_>>>()?;
    let gpu = Gpu::open(args.adapter.as_deref())?;
    let total = groups.iter().map(|g| g.cases.len() as u64).sum::<u64>() + 1;
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}").map_err(|e| e.to_string())?;
    bar.set_style(style);
    peers.iter().try_for_each(|peer| peer.check_device(&adapter_of(&gpu)))?;
    bar.set_message("copy and read rates");
    let bench = new_bench(args, &gpu, &peers)?;
    bar.inc(1);
    let mut report = new_report(args, &gpu, &bench);
    report.peers = peers.into_iter().flat_map(|p| p.rows).collect();
    for group in groups {
        let shape = &group.shape;
        let pages = group.page_size.map(|size| format!(", pages of {size}")).unwrap_or_default();
        let (rows, spec) = (shape.rows_per_layer(), &shape.keys);
        let name = format!("{rows} x {} x {} {:?}{pages}", group.seq_len, spec.head_dim, spec.dtype);
        bar.set_message(name.clone());
        match Data::new(&gpu, (group.shape, group.seq_len), group.page_size, group.norms) {
            Ok(data) => {
                for case in group.cases {
                    let row = bench.run(&data, case);
                    if let Some(error) = &row.error {
                        bar.suspend(|| eprintln!("{name} keep {} {}: {error}", row.keep_ratio, row.order));
                    }
                    report.rows.push(row);
                    bar.inc(1);
                }
            }
            Err(error) => {
                bar.suspend(|| eprintln!("{name}: {error}"));
                report.rows.extend(group.cases.iter().map(|&case| {
                    let row = new_row((&group.shape, group.seq_len), group.page_size, group.norms, case);
                    Row { error: Some(error.clone()), ..row }
                }));
                bar.inc(group.cases.len() as u64);
            }
        }
        gpu.wait()?; // frees what the group held
        save(args, &report)?;
    }
    bar.finish_and_clear();
    print!("{}", markdown::report(&report));
    if args.preset.is_some() {
        print!("\n{}", tables::table(&report));
    }
    if let Some(path) = &args.plot {
        if report.rows.iter().any(|r| r.us_median.is_some()) {
            plot::plot(&report, &Filter::default(), path)?;
        } else {
            eprintln!("{}: not drawn, since no row was timed", path.display());
        }
    }
    match report.rows.iter().filter(|r| r.error.is_some()).count() {
        _ if report.void.is_some() => Err(report.void.unwrap_or_default()),
        0 => Ok(()),
        failed => Err(format!("{failed} cases failed, see their rows")),
    }
}

fn save(args: &RunArgs, report: &Report) -> Result<()> {
    if let Some(path) = &args.output_md {
        files::write(path, &markdown::report(report))?;
    }
    if let Some(path) = &args.output_csv {
        files::write(path, &files::csv(report))?;
    }
    if let Some(path) = &args.output_json {
        files::write(path, &(serde_json::to_string_pretty(report).map_err(|e| e.to_string())? + "\n"))?;
    }
    Ok(())
}

fn new_bench<'a>(args: &RunArgs, gpu: &'a Gpu, peers: &[PeerReport]) -> Result<Bench<'a>> {
    let clock = Clock::new(gpu);
    let rates = rates::measure(gpu, &clock, if gpu.is_cpu() { 5 } else { 20 })?;
    let torch_copy_gb_s = peers.iter().filter_map(PeerReport::torch_copy_gb_s).reduce(f64::max);
    let compressor =
        Compressor::new(&gpu.device, Options::with_subgroups(args.subgroups)).map_err(|e| e.to_string())?;
    Ok(Bench {
        gpu,
        flush: Flush::new(gpu, args.flush_mb.unwrap_or(if gpu.is_cpu() { 128 } else { 256 }), args.flush)?,
        clock,
        compressor,
        rates: Rates { torch_copy_gb_s, ..rates },
        repetitions: args.repetitions as usize,
        warmup: args.warmup as usize,
        check: !args.no_check,
        l2_bytes: args.l2_mb << 20,
    })
}

fn new_report(args: &RunArgs, gpu: &Gpu, bench: &Bench<'_>) -> Report {
    let info = &gpu.info;
    let own = bench.rates.own_copy_gb_s();
    let slow = info.name.contains("H100") && info.name.contains("HBM3") && own < H100_COPY_GB_S;
    Report {
        tool: TOOL.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: about::commit(args.commit.as_deref()),
        wgpu: about::wgpu_version(),
        date: about::today(),
        command: about::command(),
        adapter: adapter_of(gpu),
        repetitions: bench.repetitions,
        warmup: bench.warmup,
        flush: format!("{}, {} MiB", bench.flush.mode.name(), bench.flush.bytes >> 20),
        clock: if bench.clock.exists() { "gpu" } else { "wall" }.into(),
        rates: bench.rates.clone(),
        void: slow.then(|| format!("the own copy rate is {own:.0} GB/s, below {H100_COPY_GB_S:.0}")),
        rows: Vec::new(),
        peers: Vec::new(),
    }
}

fn adapter_of(gpu: &Gpu) -> Adapter {
    let (info, limits) = (&gpu.info, gpu.device.limits());
    Adapter {
        name: info.name.clone(),
        backend: info.backend.to_string(),
        device_type: format!("{:?}", info.device_type),
        driver: info.driver.clone(),
        driver_info: info.driver_info.clone(),
        vendor: info.vendor,
        device: info.device,
        subgroup_min_size: info.subgroup_min_size,
        subgroup_max_size: info.subgroup_max_size,
        features: gpu.device.features().iter_names().map(|f| f.0).collect::<Vec<_>>().join(" "),
        max_buffer_size: limits.max_buffer_size,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
    }
}
