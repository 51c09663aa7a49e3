//! Benchmarks of keynorm on any adapter.

mod about;
mod case;
mod check;
mod cli;
mod data;
mod design;
mod files;
mod gpu;
mod markdown;
mod rates;
mod report;
mod run;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            eprintln!("{}", text.lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Run(args) if args.list_adapters => list_adapters(),
        Command::Run(args) => run::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn list_adapters() -> gpu::Result<()> {
    for (i, adapter) in gpu::adapters().iter().enumerate() {
        let info = adapter.get_info();
        println!("{i}: {} ({:?}, {}, {} {})", info.name, info.device_type, info.backend, info.driver, info.driver_info);
    }
    Ok(())
}
