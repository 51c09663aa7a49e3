//! Arguments, and the policy that they make.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use keynorm::{ArgumentError, Budget, Direction, Dtype, KvShape, Order, Policy, Rounding, Selector, TensorSpec};

use crate::Failure;

/// The cache that is read without `--input`.
const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_kv_512_f16.safetensors");

/// Compresses a KV cache on the GPU: keeps the keys of lowest L2 norm, and their values.
///
/// Reads tensors `layers.{i}.keys` and `layers.{i}.values`, [batch, num_kv_heads, seq_len, head_dim] in F16, BF16, F32,
/// F8_E4M3 or F8_E5M2, from a safetensors file; writes the same names with fewer tokens, and `layers.{i}.positions` (U32).
#[derive(Debug, Parser)]
#[command(name = "compress", version, max_term_width = 100)]
pub struct Args {
    /// Cache to read; without it, a bundled real one
    #[arg(long, value_name = "F", default_value = BUNDLED, hide_default_value = true)]
    pub input: PathBuf,
    /// Cache to write; without it, nothing is written. May be the input
    #[arg(long, value_name = "F")]
    pub output: Option<PathBuf>,
    /// Share of tokens kept, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "R", allow_negative_numbers = true, conflicts_with = "keep_tokens")]
    keep_ratio: Option<f64>,
    /// Tokens kept in each row
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    keep_tokens: Option<u32>,
    /// Where kept tokens go: into the holes of dropped ones, or packed in their order [default: fill]
    #[arg(long)]
    order: Option<OrderArg>,
    /// How thresholds are found; the result does not depend on it [default: auto]
    #[arg(long)]
    selector: Option<SelectorArg>,
    /// Which keys are kept [default: lowest]
    #[arg(long)]
    direction: Option<DirectionArg>,
    /// Seed of `--direction random`
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 0)]
    seed: u64,
    /// First tokens that are always kept [default: by preset]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    sinks: Option<u32>,
    /// Last tokens that are always kept [default: by preset]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    recent: Option<u32>,
    /// Layers left whole, by their index in the tensor names, e.g. 0,1; '' for none [default: by preset]
    #[arg(long, value_name = "LIST", value_parser = parse_layers)]
    skip_layers: Option<Layers>,
    /// Where the defaults come from: paper (layers 0 and 1 whole), kvpress (rounds down, no layer whole), safe (as paper,
    /// and the first 4 and last 64 tokens kept)
    #[arg(long, default_value = "paper")]
    preset: Preset,
    /// Rounding of the keep ratio [default: by preset]
    #[arg(long)]
    rounding: Option<RoundingArg>,
    /// Adapter to use: its number in --list-adapters, or a part of its name, in any case
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Lists the adapters and stops
    #[arg(long)]
    pub list_adapters: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    Paper,
    Kvpress,
    Safe,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OrderArg {
    Fill,
    Positional,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SelectorArg {
    Auto,
    Bitonic,
    Radix,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DirectionArg {
    Lowest,
    Highest,
    Random,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoundingArg {
    Ceil,
    Floor,
}

/// Layer indices. A type of its own, since clap would take a `Vec` for an argument that repeats.
#[derive(Debug, Clone)]
struct Layers(Vec<u32>);

fn parse_layers(text: &str) -> Result<Layers, String> {
    if text.trim().is_empty() {
        return Ok(Layers(Vec::new()));
    }
    let layer = |part: &str| part.trim().parse().map_err(|e| format!("layer index '{}': {e}", part.trim()));
    text.split(',').map(layer).collect::<Result<_, _>>().map(Layers)
}

/// A policy, and the layers of the file that are left whole.
#[derive(Debug)]
pub struct Task {
    /// `skip_layers` is empty: the plan knows one layer, the file many.
    pub policy: Policy,
    pub skip_layers: Vec<u32>,
}

impl Args {
    /// Preset first, then the flags that were given.
    pub fn task(&self) -> Result<Task, Failure> {
        let keep_ratio = self.keep_ratio.unwrap_or(0.5);
        let mut policy = match self.preset {
            Preset::Paper => Policy::paper(keep_ratio),
            Preset::Kvpress => Policy::kvpress(keep_ratio),
            Preset::Safe => Policy::safe(keep_ratio),
        };
        if let (Some(arg), Budget::KeepRatio { rounding, .. }) = (self.rounding, &mut policy.budget) {
            *rounding = match arg {
                RoundingArg::Ceil => Rounding::Ceil,
                RoundingArg::Floor => Rounding::Floor,
            };
        }
        if let Some(tokens) = self.keep_tokens {
            policy.budget = Budget::KeepTokens(tokens);
        }
        policy.order = match self.order {
            None | Some(OrderArg::Fill) => Order::Fill,
            Some(OrderArg::Positional) => Order::Positional,
        };
        policy.selector = match self.selector {
            None | Some(SelectorArg::Auto) => Selector::Auto,
            Some(SelectorArg::Bitonic) => Selector::Bitonic,
            Some(SelectorArg::Radix) => Selector::Radix,
        };
        policy.direction = match self.direction {
            None | Some(DirectionArg::Lowest) => Direction::Lowest,
            Some(DirectionArg::Highest) => Direction::Highest,
            Some(DirectionArg::Random) => Direction::Random { seed: self.seed },
        };
        policy.sinks = self.sinks.unwrap_or(policy.sinks);
        policy.recent = self.recent.unwrap_or(policy.recent);
        let preset_layers = std::mem::take(&mut policy.skip_layers);
        let skip_layers = self.skip_layers.as_ref().map_or(preset_layers, |layers| layers.0.clone());
        check(&policy)?;
        Ok(Task { policy, skip_layers })
    }

    /// The layers that the command line names; those of a preset need not be there.
    pub fn named_layers(&self) -> &[u32] {
        self.skip_layers.as_ref().map_or(&[], |layers| &layers.0)
    }
}

/// The library's own check, before any file or device is touched, with the flag in front of its message.
fn check(policy: &Policy) -> Result<(), Failure> {
    let spec = TensorSpec::new(Dtype::F16, 64);
    let any_shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 1, capacity: 1, keys: spec, values: spec };
    policy.check(&any_shape).map_err(|error| {
        let flag = match error {
            ArgumentError::KeepRatio { .. } => "--keep-ratio",
            _ => "--keep-tokens",
        };
        format!("{flag}: {error}")
    })
}
