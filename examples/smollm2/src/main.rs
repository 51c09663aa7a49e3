//! The command `keynorm-smollm2`; `--help` says what it does.

use std::process::ExitCode;

use clap::Parser as _;
use keynorm_smollm2::cli::{Cli, Command, Common, Perplexity, Protocol, Retrieval, Speed};
use keynorm_smollm2::retrieval::Task;
use keynorm_smollm2::{alr, calibrate, generate, perplexity, retrieval, speed};

fn run(cli: &Cli) -> anyhow::Result<()> {
    let common = &cli.common;
    match &cli.command {
        Command::Generate(args) => generate::run(common, args),
        Command::Perplexity(args) => perplexity::run(common, args),
        Command::Passkey(args) => retrieval::run(common, args, Task::Passkey),
        Command::Needle(args) => retrieval::run(common, args, Task::Needle),
        Command::Alr(args) => alr::run(common, args),
        Command::Calibrate(args) => calibrate::run(common, args),
        Command::Speed(args) => speed::run(common, args),
        Command::Figures => figures(common),
    }
}

fn figures(common: &Common) -> anyhow::Result<()> {
    let text = Perplexity {
        text: None,
        protocol: Protocol::Both,
        offsets: vec![],
        keep: vec![],
        budgets: vec![],
        strategies: vec![],
        skip: None,
        prefill: None,
        score: None,
        length: None,
        seeds: None,
        calibration: None,
    };
    let speed = Speed { strategy: "lowest+sinks+recent".to_owned(), ..Speed::default() };
    speed::run(common, &speed)?;
    alr::run(common, &Default::default())?;
    perplexity::run(common, &text)?;
    retrieval::run(common, &Retrieval::default(), Task::Passkey)?;
    retrieval::run(common, &Retrieval::default(), Task::Needle)
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
