//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keynorm::{Dtype, Order, Score, Selector, Switch};

use crate::data::Norms;
use crate::plot::Filter;
use crate::rates::FlushMode;
use crate::report::{one_of, parse_dtype};

/// Times the compression of a KV cache in place, honestly: each repetition starts from restored data and empty caches.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check and time cases.
    Run(Box<RunArgs>),
    /// The table of the design: goal, measured, PyTorch's best, floor.
    Table(WithPeers),
    /// PyTorch's fastest variant against ours, on one device.
    Ratio(WithPeers),
    /// Two reports, row by row: times, and whether both left the same bits.
    Compare { a: PathBuf, b: PathBuf },
    /// Time over tokens a row, as SVG.
    Plot {
        #[command(flatten)]
        reports: WithPeers,
        #[command(flatten)]
        filter: Filter,
        /// The SVG.
        #[arg(long)]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct WithPeers {
    /// A report of `bench run`.
    #[arg(long)]
    pub json: PathBuf,
    /// Reports of peers on the same device, beside those that the run was given.
    #[arg(long, alias = "peers", value_delimiter = ',')]
    pub torch: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// List adapters and stop.
    #[arg(long)]
    pub list_adapters: bool,
    /// Number or part of the name of the adapter [default: a discrete GPU, else another, else a CPU].
    #[arg(long)]
    pub adapter: Option<String>,
    /// Known cases, in place of --rows, --len, --shape, --head-dim, --dtype and --keep.
    #[arg(long, value_enum, conflicts_with_all = ["rows", "seq_len", "shape", "head_dim", "dtype", "keep", "capacity"])]
    pub preset: Option<Preset>,
    /// Rows (sequences times KV heads), each with every --len.
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<u32>,
    /// Tokens a row.
    #[arg(long = "len", value_delimiter = ',')]
    pub seq_len: Vec<u32>,
    /// Tokens that a row has room for, where they are more than it holds.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub capacity: u32,
    /// ROWSxLEN or BATCHxHEADSxLEN, beside those of --rows and --len.
    #[arg(long, value_delimiter = ',', value_parser = parse_shape)]
    pub shape: Vec<(u32, u32)>,
    /// Elements a token.
    #[arg(long, value_delimiter = ',', default_value = "128")]
    pub head_dim: Vec<u32>,
    /// f16, bf16, f32, f8e4m3, f8e5m2, q8_0, q4_0, i8scaled; quantised rows by --score norm alone.
    #[arg(long, value_delimiter = ',', value_parser = parse_dtype, default_value = "f16")]
    pub dtype: Vec<Dtype>,
    /// Shares of tokens that are kept.
    #[arg(long, value_delimiter = ',', value_parser = parse_ratio, default_value = "0.5")]
    pub keep: Vec<f64>,
    /// fill, positional.
    #[arg(long, value_delimiter = ',', value_parser = parse_order, default_value = "fill,positional")]
    pub order: Vec<Order>,
    /// auto, radix, bitonic.
    #[arg(long, value_delimiter = ',', value_parser = parse_selector, default_value = "auto")]
    pub selector: Vec<Selector>,
    /// How the tokens lie: contiguous, paged; with both the same cases are run side by side.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "contiguous")]
    pub layout: Vec<Layout>,
    /// Tokens a page of a paged cache. Pages of a row are shuffled.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(8..=256))]
    pub page_size: u32,
    /// How the norms of keys lie; with several the same cases are run side by side.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "wide")]
    pub norms: Vec<Norms>,
    /// norm, keydiff, centroid.
    #[arg(long, value_delimiter = ',', value_parser = parse_score, default_value = "norm")]
    pub score: Vec<Score>,
    /// Passes of its own, by `Bound::encode`, in place of one; of whole compressions.
    #[arg(long, conflicts_with = "cached")]
    pub passes: bool,
    /// A decode step: the norms of all keys are cached before it, as after earlier steps; of contiguous caches.
    #[arg(long)]
    pub cached: bool,
    /// MiB of keys of a layer up to which the floor of keydiff and centroid counts one read of them, not two: what the
    /// last-level cache holds from the first pass to the second.
    #[arg(long, default_value_t = 32)]
    pub l2_mb: u64,
    /// Layers in one call, each with buffers of its own.
    #[arg(long, default_value_t = 1)]
    pub layers: u32,
    /// Subgroup shuffles: auto, on, off.
    #[arg(long, value_parser = parse_switch, default_value = "auto")]
    pub subgroups: Switch,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    #[arg(long, default_value_t = 3)]
    pub warmup: u32,
    /// MiB that empty the last-level cache before each repetition [default: 256, on a CPU 128].
    #[arg(long)]
    pub flush_mb: Option<u64>,
    /// How that is done.
    #[arg(long, value_enum, default_value = "clean")]
    pub flush: FlushMode,
    /// Time without comparing with the reference first.
    #[arg(long)]
    pub no_check: bool,
    /// JSON of peers on the same device, for the floor, the plot and the tables.
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<PathBuf>,
    /// Commit that was built, for the record.
    #[arg(long)]
    pub commit: Option<String>,
    #[arg(long)]
    pub output_md: Option<PathBuf>,
    #[arg(long)]
    pub output_csv: Option<PathBuf>,
    #[arg(long)]
    pub output_json: Option<PathBuf>,
    /// SVG of the time over tokens a row; `bench plot` draws others from the JSON.
    #[arg(long)]
    pub plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// [row, token, dim].
    Contiguous,
    /// [page, slot, dim], a sequence to a row, by a table.
    Paged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The table of the design, with its goals; its last row is a decode step of 32 layers.
    Design,
    /// 256 MiB of keys in 8, 64 and 512 rows: every float dtype, head dimensions 64 to 256, keep .1, .5 and .9.
    Floor,
    /// 64k to 1M tokens in 1 row, in 8, and in as many as make 4M tokens; and 2048 rows of 512 tokens.
    Scaling,
}

fn parse_shape(text: &str) -> Result<(u32, u32), String> {
    let numbers: Vec<u32> = text.split(['x', 'X']).map_while(|part| part.parse().ok()).filter(|&n| n > 0).collect();
    match (numbers[..].split_last(), text.split(['x', 'X']).count() == numbers.len()) {
        (Some((&seq_len, rows)), true) if (1..=2).contains(&rows.len()) => {
            let rows = rows.iter().try_fold(1u32, |a, &b| a.checked_mul(b));
            rows.map(|r| (r, seq_len)).ok_or_else(|| format!("{text} has too many rows"))
        }
        _ => Err("expected ROWSxLEN or BATCHxHEADSxLEN".into()),
    }
}

fn parse_order(text: &str) -> Result<Order, String> {
    one_of(text, &[("fill", Order::Fill), ("positional", Order::Positional)])
}

fn parse_selector(text: &str) -> Result<Selector, String> {
    one_of(text, &[("auto", Selector::Auto), ("radix", Selector::Radix), ("bitonic", Selector::Bitonic)])
}

fn parse_score(text: &str) -> Result<Score, String> {
    one_of(text, &[("norm", Score::KeyNorm), ("keydiff", Score::KeyDiff), ("centroid", Score::Centroid)])
}

fn parse_switch(text: &str) -> Result<Switch, String> {
    one_of(text, &[("auto", Switch::Auto), ("on", Switch::On), ("off", Switch::Off)])
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (0.0..=1.0).contains(r)).ok_or_else(|| "expected a number from 0 to 1".into())
}
