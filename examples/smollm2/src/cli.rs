//! The command line.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::gguf;

/// SmolLM2 on Burn's wgpu backend, its KV cache compressed in place by keynorm.
#[derive(Debug, Parser)]
#[command(name = "keynorm-smollm2", version)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// A Llama-family GGUF file [default: where `fetch-model` puts SmolLM2-135M-Instruct].
    #[arg(long, global = true)]
    pub model: Option<PathBuf>,
    /// Number or part of the name of the adapter [default: a discrete GPU, else another, else a CPU].
    #[arg(long, global = true)]
    pub adapter: Option<String>,
    /// Decides what the random strategies keep, and the passkeys.
    #[arg(long, global = true, default_value_t = 0)]
    pub seed: u64,
    /// A smaller run, for lavapipe.
    #[arg(long, global = true)]
    pub quick: bool,
    /// The folder that results go to.
    #[arg(long, global = true, default_value = "results")]
    pub output: PathBuf,
}

impl Common {
    /// The model's file.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(gguf::default_path)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt, greedily, over a compressed cache.
    Generate(Generate),
    /// Perplexity after one compression, and under a cap while decoding.
    Perplexity(Perplexity),
    /// Find a number in a long dull text.
    Passkey(Retrieval),
    /// Find a sentence in a novel.
    Needle(Retrieval),
    /// The paper's attention loss by layer and head, and how norms go with attention.
    Alr(Alr),
    /// Fit a score, window and budget to each layer, for strategy `calibrated`.
    Calibrate(Calibrate),
    /// Decode rate and cache size by context length and keep ratio.
    Speed(Speed),
    /// All of the above but `generate` and `calibrate`, with their defaults.
    Figures,
}

#[derive(Debug, Args)]
pub struct Generate {
    /// The text to continue.
    #[arg(long)]
    pub prompt: String,
    /// Wrap the prompt as a question to the assistant.
    #[arg(long)]
    pub chat: bool,
    /// Share of the prompt's tokens that is kept.
    #[arg(long, default_value_t = 1.0)]
    pub keep_ratio: f64,
    /// Most tokens of a compressed layer while decoding: cut back to it whenever 16 more are in.
    #[arg(long)]
    pub cap: Option<u32>,
    /// Tokens to write.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Which tokens are kept.
    #[arg(long, default_value = "lowest+sinks+recent")]
    pub strategy: String,
    /// Layers that are left whole; '' for none.
    #[arg(long, value_parser = parse_layers, default_value = "0,1")]
    pub skip_layers: Layers,
}

/// Layers by their indices.
#[derive(Debug, Clone)]
pub struct Layers(pub Vec<u32>);

fn parse_layers(text: &str) -> Result<Layers, String> {
    let parts = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
    parts
        .map(|part| part.parse().map_err(|e| format!("layer index '{part}': {e}")))
        .collect::<Result<_, _>>()
        .map(Layers)
}

/// Whether layers 0 and 1 are left whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Skip {
    /// Layers 0 and 1 whole.
    Two,
    /// Every layer compressed.
    None,
    /// Once each way.
    Both,
}

impl Skip {
    /// The sets of layers that are left whole.
    #[must_use]
    pub fn sets(self) -> Vec<Vec<u32>> {
        match self {
            Self::Two => vec![vec![0, 1]],
            Self::None => vec![vec![]],
            Self::Both => vec![vec![0, 1], vec![]],
        }
    }
}

/// How the cache is cut in `perplexity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Once, after a prefill.
    Prefill,
    /// Back to a budget, again and again: the paper's.
    Stream,
    /// Both.
    Both,
}

#[derive(Debug, Args)]
pub struct Perplexity {
    /// A text, may be gzipped [default: the novel that the tool carries].
    #[arg(long)]
    pub text: Option<PathBuf>,
    /// One of the two ways to cut, or both.
    #[arg(long, value_enum, default_value = "both")]
    pub protocol: Protocol,
    /// Where windows begin, as shares of the text.
    #[arg(long, value_delimiter = ',')]
    pub offsets: Vec<f64>,
    /// Keep ratios of `prefill`.
    #[arg(long, value_delimiter = ',')]
    pub keep: Vec<f64>,
    /// Tokens that a compressed layer may hold in `stream`.
    #[arg(long, value_delimiter = ',')]
    pub budgets: Vec<u32>,
    /// Names of strategies [default: all].
    #[arg(long, value_delimiter = ',')]
    pub strategies: Vec<String>,
    /// What strategy `calibrated` reads: a file that `calibrate` wrote.
    #[arg(long)]
    pub calibration: Option<PathBuf>,
    /// Whether layers 0 and 1 are left whole.
    #[arg(long, value_enum)]
    pub skip: Option<Skip>,
    /// Tokens of a prefill.
    #[arg(long)]
    pub prefill: Option<usize>,
    /// Tokens that are scored after it.
    #[arg(long)]
    pub score: Option<usize>,
    /// Tokens of a `stream`.
    #[arg(long)]
    pub length: Option<usize>,
    /// Seeds of the random strategies.
    #[arg(long)]
    pub seeds: Option<u64>,
}

#[derive(Debug, Default, Args)]
pub struct Retrieval {
    /// Tokens of the contexts, about.
    #[arg(long, value_delimiter = ',')]
    pub lengths: Vec<usize>,
    /// Trials at each length: the hidden sentence stands in as many depths.
    #[arg(long)]
    pub trials: Option<usize>,
    /// Keep ratios.
    #[arg(long, value_delimiter = ',')]
    pub keep: Vec<f64>,
    /// Names of strategies [default: five of them].
    #[arg(long, value_delimiter = ',')]
    pub strategies: Vec<String>,
    /// What strategy `calibrated` reads: a file that `calibrate` wrote.
    #[arg(long)]
    pub calibration: Option<PathBuf>,
    /// The passkey on a line of its own, as in Mohtashami and Jaggi's prompt.
    #[arg(long)]
    pub own_line: bool,
    /// Whether layers 0 and 1 are left whole [default: two].
    #[arg(long, value_enum)]
    pub skip: Option<Skip>,
}

#[derive(Debug, Default, Args)]
pub struct Alr {
    /// A text, may be gzipped [default: the novel that the tool carries].
    #[arg(long)]
    pub text: Option<PathBuf>,
    /// Where windows begin, as shares of the text.
    #[arg(long, value_delimiter = ',')]
    pub offsets: Vec<f64>,
    /// Tokens of a window.
    #[arg(long)]
    pub tokens: Option<usize>,
}

/// What a calibration keeps small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    /// The squared error of the attention's output over the square of the residual.
    Output,
    /// The attention that dropped tokens had.
    Attention,
}

#[derive(Debug, Args)]
pub struct Calibrate {
    /// A text, may be gzipped [default: the novel that the tool carries].
    #[arg(long)]
    pub text: Option<PathBuf>,
    /// Where windows of prose begin, as shares of the text.
    #[arg(long, value_delimiter = ',')]
    pub offsets: Vec<f64>,
    /// Mean keep ratios of layers 2 and on; 0 and 1 are left whole.
    #[arg(long, value_delimiter = ',')]
    pub keep: Vec<f64>,
    /// Tokens of a window that are compressed.
    #[arg(long)]
    pub prefill: Option<usize>,
    /// Tokens after them that attend to what was kept.
    #[arg(long)]
    pub score: Option<usize>,
    /// Lengths of the passkey contexts, about.
    #[arg(long, value_delimiter = ',')]
    pub lengths: Vec<usize>,
    /// Passkey contexts of each length, other ones than `passkey` draws from the same seed.
    #[arg(long)]
    pub trials: Option<usize>,
    /// Weight of the mean over passkey contexts; that over prose has 1.
    #[arg(long, default_value_t = 0.3)]
    pub passkey_weight: f64,
    /// What is kept small.
    #[arg(long, value_enum, default_value = "output")]
    pub loss: Loss,
}

#[derive(Debug, Default, Args)]
pub struct Speed {
    /// Tokens of the contexts; beyond the model's they are for timing only.
    #[arg(long, value_delimiter = ',')]
    pub contexts: Vec<usize>,
    /// Keep ratios.
    #[arg(long, value_delimiter = ',')]
    pub keep: Vec<f64>,
    /// Tokens to decode.
    #[arg(long)]
    pub tokens: Option<usize>,
    /// Which tokens are kept.
    #[arg(long, default_value = "lowest+sinks+recent")]
    pub strategy: String,
}

/// `given`, or the default where nothing was given.
#[must_use]
pub fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

/// Checks the shares given to an option.
///
/// # Errors
/// One that is NaN or outside the range; the error names the option.
pub fn check_shares(option: &str, shares: &[f64], range: RangeInclusive<f64>) -> Result<()> {
    match shares.iter().find(|&share| !range.contains(share)) {
        Some(share) => bail!("{option} is from {} to {}, not {share}", range.start(), range.end()),
        None => Ok(()),
    }
}
