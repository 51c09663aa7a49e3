//! Benchmarks of keynorm on any adapter.

mod about;
mod case;
mod cases;
mod check;
mod cli;
mod data;
mod design;
mod files;
mod gpu;
mod markdown;
mod plot;
mod rates;
mod report;
mod run;
mod tables;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use cli::{Cli, Command, WithPeers};
use report::Report;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // The first paragraph says it all; the others are hints, or how to use it where nothing was asked for.
            let text = error.to_string();
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                eprint!("{text}");
            } else {
                let words: Vec<&str> = text.split("\n\n").next().unwrap_or(&text).split_whitespace().collect();
                eprintln!("{}", words.join(" "));
            }
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run(args) if args.list_adapters => list_adapters(),
        Command::Run(args) => run::run(&args),
        Command::Table(reports) => load(&reports).map(|r| print!("{}", tables::table(&r))),
        Command::Ratio(reports) => load(&reports).and_then(|r| tables::ratio(&r)).map(|t| print!("{t}")),
        Command::Compare { a, b } => compare(&a, &b),
        Command::Plot { reports, filter, output } => load(&reports).and_then(|r| plot::plot(&r, &filter, &output)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn load(reports: &WithPeers) -> gpu::Result<Report> {
    let mut report = files::read_report(&reports.json)?;
    for path in &reports.torch {
        tables::add_peer(&mut report, files::read_peer(path)?)?;
    }
    let rate = report.rates.floor_gb_s();
    report.rows.iter_mut().for_each(|row| row.set_floor(rate));
    Ok(report)
}

fn compare(a: &Path, b: &Path) -> gpu::Result<()> {
    let [a, b] = [files::read_report(a)?, files::read_report(b)?];
    let compared = tables::compare(&a, &b)?;
    print!("{}", compared.text);
    let different = match compared.num_different {
        0 => None,
        count => {
            Some(format!("{count} rows left other bits (f32 sets of two devices may, within the documented tolerance)"))
        }
    };
    let failed = match compared.num_failed {
        0 => None,
        count => Some(format!("{count} rows failed in one of the reports")),
    };
    let void = [("a", &a), ("b", &b)]
        .into_iter()
        .filter_map(|(name, r)| r.void.as_ref().map(|v| format!("{name} is void: {v}")));
    let wrong: Vec<String> = different.into_iter().chain(failed).chain(void).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn list_adapters() -> gpu::Result<()> {
    let all = gpu::adapters();
    print!("{}", gpu::list(&all));
    if all.is_empty() { Err(gpu::NO_ADAPTER.into()) } else { Ok(()) }
}
