//! The figures to reach: goals of the design's section 5, microseconds on one H100 (80 GB HBM3), f16, head dimension 128.

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub rows: u32,
    pub seq_len: u32,
    pub keep_ratio: f64,
    /// Best of eager, graph-captured and tuned PyTorch 2.11 on the same card, when the goals were set.
    pub torch_us: f64,
    pub fill_us: f64,
    pub ordered_us: Option<f64>,
}

const fn goal(rows: u32, seq_len: u32, keep_ratio: f64, us: (f64, f64, Option<f64>)) -> Goal {
    Goal { rows, seq_len, keep_ratio, torch_us: us.0, fill_us: us.1, ordered_us: us.2 }
}

pub const GOALS: [Goal; 9] = [
    goal(8, 1024, 0.5, (43.0, 8.0, Some(9.0))),
    goal(8, 4096, 0.5, (73.0, 12.0, Some(15.0))),
    goal(64, 4096, 0.5, (242.0, 56.0, Some(84.0))),
    goal(8, 32768, 0.5, (289.0, 58.0, Some(88.0))),
    goal(8, 131_072, 0.1, (459.0, 142.0, None)),
    goal(8, 131_072, 0.5, (874.0, 205.0, Some(330.0))),
    goal(8, 131_072, 0.9, (1257.0, 142.0, None)),
    goal(256, 4096, 0.5, (780.0, 205.0, Some(320.0))),
    goal(256, 32768, 0.5, (6038.0, 1640.0, Some(2650.0))),
];

/// One decode step of many layers, each with buffers of its own, the norms cached. 3057 is what PyTorch took.
pub const DECODE: Goal = goal(8, 4096, 0.98, (3057.0, 60.0, None));
pub const DECODE_LAYERS: u32 = 32;

/// Many short rows in one call: the floor over a share of it, and microseconds on top.
pub const MANY_ROWS: (u32, u32) = (2048, 512);
pub const MANY_ROWS_FLOOR_SHARE: f64 = 0.8;
pub const MANY_ROWS_EXTRA_US: f64 = 15.0;

/// Time of KeyDiff over its own floor, which counts the keys twice unless they fit the last-level cache.
pub const KEYDIFF_OVER_FLOOR: f64 = 1.15;

/// Share of the floor to reach from [`LARGE_BYTES`] of keys on, per cent: `Fill`, `Positional`.
pub const FLOOR_PERCENT: (f64, f64) = (88.0, 80.0);
pub const LARGE_BYTES: u64 = 256 << 20;

/// A run on an H100 with HBM3, as the goals are of, whose own copy rate is below this is void, GB/s.
pub const H100_COPY_GB_S: f64 = 2800.0;
