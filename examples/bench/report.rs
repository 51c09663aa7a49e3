//! The report: what the JSON holds. Rows have the fields of the peers' JSON, and more.

use keynorm::{Dtype, TensorSpec};
use serde::{Deserialize, Serialize};

use crate::case::DECODE;

/// What wrote a report of ours.
pub const TOOL: &str = "keynorm-bench";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub tool: String,
    pub version: String,
    pub commit: String,
    pub wgpu: String,
    pub date: String,
    pub command: String,
    pub adapter: Adapter,
    pub repetitions: usize,
    pub warmup: usize,
    /// How the L2 was emptied, and with how many MiB.
    pub flush: String,
    /// `gpu` where the times are timestamps, `wall` where the device has none.
    pub clock: String,
    pub rates: Rates,
    /// Why no figure of this run counts.
    pub void: Option<String>,
    pub rows: Vec<Row>,
    /// Rows of the peers that were given.
    #[serde(default)]
    pub peers: Vec<PeerRow>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Adapter {
    pub name: String,
    pub backend: String,
    pub device_type: String,
    pub driver: String,
    pub driver_info: String,
    pub vendor: u32,
    pub device: u32,
    pub subgroup_min_size: u32,
    pub subgroup_max_size: u32,
    pub features: String,
    pub max_buffer_size: u64,
    pub max_storage_buffer_binding_size: u64,
    pub max_compute_workgroup_storage_size: u32,
}

/// Bytes read and written (of reads: read) a second, in 10⁹.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Bytes of the buffers that were copied.
    pub bytes: u64,
    pub copy_kernel_gb_s: f64,
    pub copy_buffer_gb_s: f64,
    pub read_gb_s: f64,
    pub torch_copy_gb_s: Option<f64>,
    /// Microseconds of a pass of one workgroup that writes 4 KiB, by the same clock as the cases.
    #[serde(default)]
    pub least_us: Option<f64>,
}

impl Rates {
    /// The rate of the floor: the best copy of this run.
    pub fn floor_gb_s(&self) -> f64 {
        self.own_copy_gb_s().max(self.torch_copy_gb_s.unwrap_or(0.0))
    }

    pub fn own_copy_gb_s(&self) -> f64 {
        self.copy_kernel_gb_s.max(self.copy_buffer_gb_s)
    }
}

fn wide() -> String {
    "wide".into()
}

/// One case. Times are microseconds, medians unless named otherwise.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    pub peer: String,
    /// `compress`; a decode step with cached norms would be another.
    pub mode: String,
    pub layers: u32,
    pub batch_rows: u32,
    pub seq_len: u32,
    /// Tokens that a row has room for, where they are more.
    pub capacity: Option<u32>,
    pub head_dim: u32,
    pub dtype: String,
    pub keep_ratio: f64,
    pub kept: u32,
    pub order: String,
    pub selector: String,
    /// `norm`, `keydiff`, `centroid`.
    pub score: String,
    /// As `--norms` has it; reports without it are of `wide`.
    #[serde(default = "wide")]
    pub norms: String,
    pub us_median: Option<f64>,
    pub us_min: Option<f64>,
    pub us_max: Option<f64>,
    pub us_p10: Option<f64>,
    pub us_p90: Option<f64>,
    pub wall_us_median: Option<f64>,
    /// Each in a pass of its own, in repetitions of their own.
    pub score_us: Option<f64>,
    pub select_us: Option<f64>,
    pub compact_us: Option<f64>,
    /// Reads of the keys that the floor counts.
    pub key_reads: u32,
    /// Keys read that often, moved rows of both tensors read and written once.
    pub bytes_floor: u64,
    /// Those bytes over the time.
    pub gb_s: Option<f64>,
    pub floor_us: Option<f64>,
    pub floor_percent: Option<f64>,
    /// Rows moved, of one tensor, and what a random cache makes one expect.
    pub num_moved: u64,
    pub num_moved_expected: f64,
    /// Host time of `record`, and of making an encoder, a pass, `record` and `finish`.
    pub record_us: Option<f64>,
    pub record_finish_us: Option<f64>,
    pub scratch_bytes: u64,
    /// Of positions and kept rows.
    pub hash: String,
    /// Rows compared with the reference, of how many.
    pub rows_checked: u32,
    pub error: Option<String>,
}

impl Row {
    /// By what tokens are compared; early reports do not say that it is the norm.
    pub fn score(&self) -> &str {
        if self.score.is_empty() { "norm" } else { &self.score }
    }

    /// Tokens of all layers.
    pub fn tokens(&self) -> u64 {
        u64::from(self.layers) * u64::from(self.batch_rows) * u64::from(self.seq_len)
    }

    /// Bytes of the keys.
    pub fn key_bytes(&self) -> u64 {
        self.tokens() * self.token_bytes()
    }

    fn token_bytes(&self) -> u64 {
        parse_dtype(&self.dtype).map_or(0, |dtype| TensorSpec::new(dtype, self.head_dim).row_bytes().into())
    }

    /// Sets what follows from the time and the rate of the floor: keys are read as often as `key_reads` says, not at all
    /// where norms were cached; moved rows of both tensors are read and written.
    pub fn set_floor(&mut self, floor_gb_s: f64) {
        let Some(us) = self.us_median else { return };
        let reads = if self.mode == DECODE { 0 } else { u64::from(self.key_reads.max(1)) };
        self.bytes_floor = reads * self.key_bytes() + self.num_moved * 4 * self.token_bytes();
        let floor_us = self.bytes_floor as f64 / floor_gb_s / 1e3;
        self.gb_s = Some(self.bytes_floor as f64 / us / 1e3);
        (self.floor_us, self.floor_percent) = (Some(floor_us), Some(100.0 * floor_us / us));
    }
}

/// A row of a peer's JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerRow {
    pub peer: String,
    pub mode: String,
    pub layers: Option<u32>,
    pub batch_rows: u32,
    pub seq_len: u32,
    pub head_dim: u32,
    pub dtype: String,
    pub keep_ratio: f64,
    pub kept: u32,
    pub us_median: Option<f64>,
    pub us_min: Option<f64>,
    pub us_max: Option<f64>,
    pub us_p10: Option<f64>,
    pub us_p90: Option<f64>,
    pub wall_us_median: Option<f64>,
    pub bytes_floor: u64,
    pub gb_s: Option<f64>,
    pub error: Option<String>,
}

/// A peer's JSON, as `benches/peers` write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReport {
    pub tool: String,
    pub torch: Option<String>,
    pub device: String,
    /// Of a GPU, where it is known.
    pub driver: Option<String>,
    /// `cuda` or `cpu`; early reports do not say.
    pub device_type: Option<String>,
    pub copy_gb_s: Option<f64>,
    pub read_gb_s: Option<f64>,
    pub rows: Vec<PeerRow>,
}

impl PeerReport {
    /// PyTorch's copy rate.
    pub fn torch_copy_gb_s(&self) -> Option<f64> {
        self.copy_gb_s.filter(|_| self.torch.is_some())
    }

    /// PyTorch says what it ran on: rates and times are of one device.
    pub fn check_device(&self, adapter: &Adapter) -> Result<(), String> {
        let on_cpu = self.device_type.as_ref().map_or(self.driver.is_none(), |kind| kind == "cpu");
        let is_same = match adapter.device_type.as_str() {
            "Cpu" => on_cpu,
            // One of the names may say more.
            _ => !on_cpu && (self.device.starts_with(&adapter.name) || adapter.name.starts_with(&self.device)),
        };
        if self.torch.is_none() || is_same {
            return Ok(());
        }
        Err(format!("PyTorch's times are of {}, the adapter is {}", self.device, adapter.name))
    }
}

/// Median, extremes and 10th and 90th percentile of some times.
#[derive(Debug, Clone, Copy)]
pub struct Stats {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub p10: f64,
    pub p90: f64,
}

impl Stats {
    pub fn of(times: &mut [f64]) -> Option<Self> {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| percentile(times, share);
        (!times.is_empty()).then(|| Self { median: at(0.5), min: at(0.0), max: at(1.0), p10: at(0.1), p90: at(0.9) })
    }
}

pub fn median(times: &mut [f64]) -> Option<f64> {
    Stats::of(times).map(|s| s.median)
}

/// Linear interpolation between the closest ranks.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
fn percentile(ascending: &[f64], share: f64) -> f64 {
    let at = share * (ascending.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(ascending.len() - 1);
    ascending[low] + (ascending[high] - ascending[low]) * (at - low as f64)
}

/// What a text names, of what is known.
pub fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<_> = known.iter().map(|k| k.0).collect();
    known.iter().find(|k| k.0 == text).map(|k| k.1).ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

/// A dtype as reports and the command line name it.
pub fn parse_dtype(text: &str) -> Result<Dtype, String> {
    let floats = [("f16", Dtype::F16), ("bf16", Dtype::Bf16), ("f32", Dtype::F32)];
    let bytes = [("f8e4m3", Dtype::F8E4M3), ("f8e5m2", Dtype::F8E5M2)];
    let quantised = [("q8_0", Dtype::Q8_0), ("q4_0", Dtype::Q4_0), ("i8scaled", Dtype::I8Scaled)];
    one_of(text, &[&floats[..], &bytes, &quantised].concat())
}
