//! One case: a plan bound to the data of its shape, checked, then timed. Every repetition starts from restored data and
//! empty caches, and what it left behind is summed up: one that did less than the first is void.

use std::time::Instant;

use keynorm::{
    Bound, Budget, BuildError, CacheState, Compressor, KvShape, KvView, Order, PageShape, PageTable, PagedKvView, Plan,
    Policy, Score, Selector, Stages, Workspace,
};

use crate::check;
use crate::data::{Data, Found, Norms, Verifier};
use crate::gpu::{Clock, Gpu, Result, micros};
use crate::rates::Flush;
use crate::report::{Rates, Row, Stats, median};

/// What all cases share.
#[derive(Debug)]
pub struct Bench<'a> {
    pub gpu: &'a Gpu,
    pub clock: Clock,
    pub flush: Flush,
    pub compressor: Compressor,
    pub rates: Rates,
    pub repetitions: usize,
    pub warmup: usize,
    pub check: bool,
    /// Keys of a layer up to which a second read of them costs no traffic.
    pub l2_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub keep_ratio: f64,
    pub order: Order,
    pub selector: Selector,
    pub score: Score,
    /// By `Bound::encode`.
    pub passes: bool,
    /// A decode step: the norms are in the state before it begins.
    pub cached: bool,
}

/// Repetitions by the host's clock, and of single stages.
const SIDE_REPETITIONS: usize = 7;
/// Work before the clock counts, for the device's clocks to come up.
const WARM_UP: std::time::Duration = std::time::Duration::from_millis(300);
const RECORDS: usize = 50;

#[derive(Debug)]
pub struct Prepared<'a> {
    pub gpu: &'a Gpu,
    pub data: &'a Data,
    pub plan: Plan,
    pub state: CacheState,
    pub bound: Bound,
    /// The state's buffers and what they hold before each repetition.
    pristine: Vec<(wgpu::Buffer, wgpu::Buffer)>,
    verifier: Verifier,
    passes: bool,
    pub kept: u32,
}

impl<'a> Prepared<'a> {
    pub fn new(gpu: &'a Gpu, compressor: &Compressor, data: &'a Data, case: Case) -> Result<Self> {
        let shape = &data.shape;
        let policy = Policy {
            order: case.order,
            selector: case.selector,
            score: case.score,
            cached_norms: case.cached,
            ..Policy::new(Budget::keep_ratio(case.keep_ratio))
        };
        let plan = compressor.plan(shape, &policy).map_err(|e| e.to_string())?;
        let state = plan.create_state().map_err(|e| e.to_string())?;
        let workspace = plan.create_workspace().map_err(|e| e.to_string())?;
        let bound = bind(gpu, data, &plan, &state, &workspace).map_err(|e| e.to_string())?;
        state.set_lengths(&gpu.queue, &vec![data.seq_len; shape.batch_size as usize]).map_err(|e| e.to_string())?;
        let mut encoder = gpu.encoder();
        if case.cached {
            data.restore(&mut encoder);
            let mut pass = encoder.begin_compute_pass(&Default::default());
            bound.record_norms(&mut pass, data.seq_len).map_err(|e| e.to_string())?;
        }
        let mut pristine = Vec::new();
        for buffer in [state.meta()].into_iter().chain(state.key_norms()) {
            let copy = gpu.buffer("pristine state", buffer.size())?;
            encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, copy.size());
            pristine.push((buffer.clone(), copy));
        }
        gpu.finish(encoder)?;
        let verifier = Verifier::new(gpu, data, &state)?;
        let kept = plan.budget(data.seq_len, 0);
        Ok(Self { gpu, data, plan, state, bound, pristine, verifier, passes: case.passes, kept })
    }

    pub fn restore(&self, encoder: &mut wgpu::CommandEncoder) {
        self.data.restore(encoder);
        for (buffer, pristine) in &self.pristine {
            encoder.copy_buffer_to_buffer(pristine, 0, buffer, 0, pristine.size());
        }
    }

    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, stages: Stages) -> Result<()> {
        let cached = self.state.key_norms().is_some() && stages == Stages::ALL;
        let stages = if cached { Stages::FROM_NORMS } else { stages };
        self.bound.record_stages(pass, self.data.seq_len, stages).map_err(|e| e.to_string())
    }

    /// One repetition in one submission; the stages of each span go in a pass of their own.
    pub fn repeat(&self, clock: &Clock, flush: &Flush, spans: &[Stages]) -> Result<(Vec<Option<f64>>, Found)> {
        let mut encoder = self.gpu.encoder();
        self.restore(&mut encoder);
        flush.record(&mut encoder);
        for (span, stages) in (0..).zip(spans) {
            if *stages == Stages::ALL && self.passes {
                // Between two passes that do nothing.
                drop(clock.begin(&mut encoder, span));
                self.bound.encode(&mut encoder, self.data.seq_len).map_err(|e| e.to_string())?;
                drop(clock.end(&mut encoder, span));
            } else {
                self.record(&mut clock.pass(&mut encoder, span), *stages)?;
            }
        }
        if clock.exists() {
            clock.resolve(&mut encoder, u32::try_from(spans.len()).unwrap_or(0));
        }
        self.verifier.record(&mut encoder);
        self.gpu.finish(encoder)?;
        let times = if clock.exists() { clock.read(self.gpu, spans.len())? } else { vec![None; spans.len()] };
        Ok((times, self.verifier.read(self.gpu)?))
    }

    /// As [`Self::repeat`], from an idle device to an idle device by the host's clock, recording counted; only the last of
    /// `spans` is timed.
    pub fn repeat_wall(&self, flush: &Flush, spans: &[Stages]) -> Result<(f64, Found)> {
        let mut encoder = self.gpu.encoder();
        self.restore(&mut encoder);
        flush.record(&mut encoder);
        let (timed, before) = spans.split_last().ok_or("nothing to time")?;
        for stages in before {
            self.record(&mut encoder.begin_compute_pass(&Default::default()), *stages)?;
        }
        self.gpu.finish(encoder)?;
        let start = Instant::now();
        let mut encoder = self.gpu.encoder();
        if *timed == Stages::ALL && self.passes {
            self.bound.encode(&mut encoder, self.data.seq_len).map_err(|e| e.to_string())?;
        } else {
            self.record(&mut encoder.begin_compute_pass(&Default::default()), *timed)?;
        }
        self.gpu.finish(encoder)?;
        let wall = micros(start);
        let mut encoder = self.gpu.encoder();
        self.verifier.record(&mut encoder);
        self.gpu.finish(encoder)?;
        Ok((wall, self.verifier.read(self.gpu)?))
    }

    /// Host time of `record` or `encode` alone, and of that with the encoder, its pass and `finish`. Nothing is submitted.
    fn record_times(&self) -> Result<(Option<f64>, Option<f64>)> {
        let (mut records, mut finishes) = (Vec::new(), Vec::new());
        for _ in 0..RECORDS {
            let whole = Instant::now();
            let mut encoder = self.gpu.encoder();
            if self.passes {
                let start = Instant::now();
                self.bound.encode(&mut encoder, self.data.seq_len).map_err(|e| e.to_string())?;
                records.push(micros(start));
            } else {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                let start = Instant::now();
                self.record(&mut pass, Stages::ALL)?;
                records.push(micros(start));
            }
            drop(encoder.finish());
            finishes.push(micros(whole));
        }
        Ok((median(&mut records), median(&mut finishes)))
    }
}

fn bind(
    gpu: &Gpu,
    data: &Data,
    plan: &Plan,
    state: &CacheState,
    workspace: &Workspace,
) -> std::result::Result<Bound, BuildError> {
    let shape = &data.shape;
    let Some(pages) = &data.pages else {
        let views: Vec<_> = data.layers.iter().map(|l| KvView::hnd(shape, &l.keys.live, &l.values.live)).collect();
        return plan.bind(&gpu.device, &views, state, workspace);
    };
    let pages_a_row = shape.capacity / pages.page_size;
    let page_shape =
        PageShape { page_size: pages.page_size, num_pages: shape.rows_per_layer() * pages_a_row, has_sentinel: false };
    let table = PageTable { buffer: &pages.table, offset_bytes: 0, stride: pages_a_row.into() };
    let views: Vec<_> =
        data.layers.iter().map(|l| PagedKvView::hnd(shape, &page_shape, &l.keys.live, &l.values.live, table)).collect();
    plan.bind_paged(&gpu.device, &page_shape, &views, state, workspace)
}

/// What every repetition must have left behind.
struct Expected {
    num_kept: u64,
    /// Rows that move at least.
    least_moved: f64,
    first: Option<Found>,
}

impl Expected {
    fn accept(&mut self, found: Found) -> Result<()> {
        let first = *self.first.get_or_insert(found);
        if u64::from(found.num_kept) != self.num_kept {
            return Err(format!("void: a repetition kept {} tokens, not {}", found.num_kept, self.num_kept));
        }
        if found.num_moved < first.num_moved {
            return Err(format!("void: a repetition moved {} rows, the first {}", found.num_moved, first.num_moved));
        }
        if (found.num_moved as f64) < self.least_moved {
            return Err(format!("void: {} rows moved, at least {:.0} were to", found.num_moved, self.least_moved));
        }
        if found != first {
            return Err(format!("void: a repetition left {:016x}, the first {:016x}", found.hash, first.hash));
        }
        Ok(())
    }
}

impl Bench<'_> {
    /// Checks and times a case; a failure goes in the row's error.
    pub fn run(&self, data: &Data, case: Case) -> Row {
        let pages = data.pages.as_ref().map(|p| p.page_size);
        let mut row = new_row((&data.shape, data.seq_len), pages, data.norms, case);
        if let Err(error) = self.fill(data, case, &mut row) {
            row.error = Some(error);
        }
        row
    }

    fn fill(&self, data: &Data, case: Case, row: &mut Row) -> Result<()> {
        let prepared = Prepared::new(self.gpu, &self.compressor, data, case)?;
        row.kept = prepared.kept;
        row.scratch_bytes = prepared.plan.workspace_bytes();
        let all_rows = data.shape.num_layers * data.shape.rows_per_layer();
        let num_kept = u64::from(all_rows) * u64::from(prepared.kept);
        let (moved, deviation) = expected_moved(row);
        row.num_moved_expected = moved;
        // Of keys whose norms are close or equal perhaps none.
        let least_moved = if row.norms == "wide" { 0.9 * moved - 8.0 * deviation } else { 0.0 };
        let mut expected = Expected { num_kept, least_moved, first: None };
        let (_, found) = prepared.repeat(&self.clock, &self.flush, &[Stages::ALL])?;
        expected.accept(found)?;
        if self.check {
            row.rows_checked = check::check(&prepared, found)?;
        }
        row.hash = format!("{:016x}", found.hash);
        row.num_moved = found.num_moved.into();

        // The check leaves the device idle; its clocks take a while to come back.
        let start = std::time::Instant::now();
        while !self.gpu.is_cpu() && start.elapsed() < WARM_UP {
            let (_, found) = prepared.repeat(&self.clock, &self.flush, &[Stages::ALL])?;
            expected.accept(found)?;
        }
        let mut times = Vec::new();
        for repetition in 0..self.warmup + self.repetitions {
            let (spans, found) = prepared.repeat(&self.clock, &self.flush, &[Stages::ALL])?;
            expected.accept(found)?;
            if repetition >= self.warmup {
                times.extend(spans[0]);
            }
        }
        let mut walls = Vec::new();
        let num_walls = if self.clock.exists() { SIDE_REPETITIONS.min(self.repetitions) } else { self.repetitions };
        for _ in 0..num_walls {
            let (wall, found) = prepared.repeat_wall(&self.flush, &[Stages::ALL])?;
            expected.accept(found)?;
            walls.push(wall);
        }
        self.time_stages(&prepared, &mut expected, row)?;
        (row.record_us, row.record_finish_us) = prepared.record_times()?;
        row.wall_us_median = median(&mut walls);
        if !self.clock.exists() {
            times = walls;
        } else if times.len() * 2 < self.repetitions {
            return Err("void: the device's clock gave no time for most repetitions".into());
        }
        self.fill_times(row, &mut times);
        Ok(())
    }

    fn time_stages(&self, prepared: &Prepared<'_>, expected: &mut Expected, row: &mut Row) -> Result<()> {
        let mut stages = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..SIDE_REPETITIONS.min(self.repetitions) {
            let spans = [Stages::SCORE, Stages::SELECT, Stages::COMPACT];
            let (times, found) = prepared.repeat(&self.clock, &self.flush, &spans)?;
            expected.accept(found)?;
            for (stage, time) in stages.iter_mut().zip(times) {
                stage.extend(time);
            }
        }
        let [score, select, compact] = &mut stages;
        (row.score_us, row.select_us, row.compact_us) = (median(score), median(select), median(compact));
        Ok(())
    }

    fn fill_times(&self, row: &mut Row, times: &mut [f64]) {
        let layer_bytes = row.key_bytes() / u64::from(row.layers);
        let read_once = row.score() == "norm" || layer_bytes <= self.l2_bytes;
        row.key_reads = if row.mode == DECODE { 0 } else { 2 - u32::from(read_once) };
        let Some(stats) = Stats::of(times) else { return };
        row.us_median = Some(stats.median);
        row.us_min = Some(stats.min);
        row.us_max = Some(stats.max);
        row.us_p10 = Some(stats.p10);
        row.us_p90 = Some(stats.p90);
        row.set_floor(self.rates.floor_gb_s());
    }
}

/// Rows that random keys make one expect to move, of one tensor, and how far from it they may be: by `fill` the kept tokens
/// behind the budget, by `positional` those behind the first that is dropped.
fn expected_moved(row: &Row) -> (f64, f64) {
    let [rows, kept, dropped] = [row.layers * row.batch_rows, row.kept, row.seq_len - row.kept].map(f64::from);
    if row.order == "fill" {
        let expected = rows * kept * dropped / f64::from(row.seq_len.max(1));
        return (expected, expected.sqrt());
    }
    let stay = kept / (dropped + 1.0);
    (rows * (kept - stay), 2.0 * stay * rows.sqrt())
}

/// The mode of a row of a contiguous cache.
pub const COMPRESS: &str = "compress";

/// The mode of a row whose norms were cached.
pub const DECODE: &str = "decode";

/// A case that has not been timed yet.
pub fn new_row((shape, seq_len): (&KvShape, u32), page_size: Option<u32>, norms: Norms, case: Case) -> Row {
    Row {
        peer: "keynorm".into(),
        mode: match page_size {
            Some(size) => format!("pages of {size}"),
            None => if case.cached { DECODE } else { COMPRESS }.into(),
        },
        layers: shape.num_layers,
        batch_rows: shape.rows_per_layer(),
        seq_len,
        capacity: Some(shape.capacity).filter(|&capacity| capacity > seq_len),
        head_dim: shape.keys.head_dim,
        dtype: format!("{:?}", shape.keys.dtype).to_lowercase(),
        keep_ratio: case.keep_ratio,
        order: format!("{:?}", case.order).to_lowercase(),
        selector: format!("{:?}", case.selector).to_lowercase(),
        score: match case.score {
            Score::KeyDiff => "keydiff".into(),
            Score::Centroid => "centroid".into(),
            _ => "norm".into(),
        },
        norms: norms.name(),
        ..Row::default()
    }
}
