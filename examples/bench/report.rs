//! The report: what the JSON holds. Rows have the fields of the peers' JSON, and more.

use serde::{Deserialize, Serialize};

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
    pub copy_gb_s: Option<f64>,
    pub read_gb_s: Option<f64>,
    pub rows: Vec<PeerRow>,
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
