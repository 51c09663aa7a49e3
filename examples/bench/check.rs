//! A result against the reference: positions, moved bytes and, where every row is read back, the device's own sums.

use std::ops::Range;

use keynorm::reference::{self, CacheRow, RowTokens, top_k};
use keynorm::{Dtype, Order, Score};

use crate::case::Prepared;
use crate::data::{Found, HostSums, seed_of};
use crate::gpu::Result;

/// Most bytes of keys that are compared.
const CHECKED_BYTES: u64 = 64 << 20;

/// One row, read back.
struct RowData {
    /// Row of the layer, and of the state.
    row: u32,
    state_row: u32,
    layer: u32,
    before: [Vec<u32>; 2],
    after: [Vec<u32>; 2],
    positions: Vec<u32>,
}

/// Compares all rows where they are small enough, else a sample of evenly spaced ones; returns their number.
pub fn check(prepared: &Prepared<'_>, found: Found) -> Result<u32> {
    let shape = &prepared.data.shape;
    let rows = shape.num_layers * shape.rows_per_layer();
    let row_bytes = u64::from(prepared.data.seq_len) * u64::from(shape.keys.row_bytes());
    let count = u32::try_from(CHECKED_BYTES / row_bytes.max(1)).unwrap_or(u32::MAX).clamp(1, rows);
    let picks: Vec<u32> = (0..count).map(|i| (u64::from(i) * u64::from(rows) / u64::from(count)) as u32).collect();
    let read = picks.iter().map(|&r| read_row(prepared, r)).collect::<Result<Vec<_>>>()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<Result<HostSums>> = std::thread::scope(|scope| {
        let check_part = |part: &[RowData]| {
            let mut sums = HostSums::default();
            part.iter().try_for_each(|row| check_row(prepared, row, &mut sums)).map(|()| sums)
        };
        let workers: Vec<_> =
            read.chunks(read.len().div_ceil(threads)).map(|part| scope.spawn(move || check_part(part))).collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("the check panicked".into()))).collect()
    });
    let mut sums = HostSums::default();
    for part in parts {
        sums.merge(&part?);
    }
    // The device sums up a pool as its pages lie, the host rows in their order.
    if prepared.data.pages.is_none() && count == rows && sums.hash() != found.hash {
        return Err(format!("wrong: the device sums up {:016x}, the host {:016x}", found.hash, sums.hash()));
    }
    Ok(count)
}

fn read_row(prepared: &Prepared<'_>, state_row: u32) -> Result<RowData> {
    let shape = &prepared.data.shape;
    let (layer, row) = (state_row / shape.rows_per_layer(), state_row % shape.rows_per_layer());
    let buffers = &prepared.data.layers[layer as usize];
    let range = |row: u32, bytes: u64, used: u64| -> Range<u64> {
        let start = u64::from(row) * bytes;
        start..start + used
    };
    let token_bytes = u64::from(shape.keys.row_bytes());
    let row_bytes = u64::from(shape.capacity) * token_bytes;
    let kept = u64::from(prepared.kept);
    let gpu = prepared.gpu;
    let tokens = |b: &wgpu::Buffer, count: u64| match &prepared.data.pages {
        Some(pages) => {
            let words = gpu.read_range(b, range(row, row_bytes, row_bytes))?;
            Ok(pages.in_order(row, shape.capacity, &words))
        }
        None => gpu.read_range(b, range(row, row_bytes, count * token_bytes)),
    };
    let before = |b: &wgpu::Buffer| tokens(b, prepared.data.seq_len.into());
    let after = |b: &wgpu::Buffer| tokens(b, kept);
    Ok(RowData {
        row,
        state_row,
        layer,
        before: [before(&buffers.keys.pristine)?, before(&buffers.values.pristine)?],
        after: [after(&buffers.keys.live)?, after(&buffers.values.live)?],
        positions: gpu
            .read_range(prepared.state.positions(), range(state_row, u64::from(shape.capacity) * 4, kept * 4))?,
    })
}

fn check_row(prepared: &Prepared<'_>, data: &RowData, sums: &mut HostSums) -> Result<()> {
    let shape = &prepared.data.shape;
    let policy = prepared.plan.policy();
    let state = CacheRow::new(prepared.data.seq_len);
    let held_words = (prepared.data.seq_len * shape.keys.row_bytes() / 4) as usize;
    let [keys, values] = [&data.before[0], &data.before[1]].map(|words| bytemuck::cast_slice(&words[..held_words]));
    let tokens = RowTokens { keys_spec: &shape.keys, keys, values_spec: &shape.values, values, scores: &[] };
    let scored = reference::score_row(policy, data.layer, data.row, &state, &tokens).map_err(|e| e.to_string())?;
    let order_keys = scored.order_keys;
    let wanted = top_k::select(&order_keys, &policy.budget, policy.order).map_err(|e| e.to_string())?;
    let wrong = |what: String| Err(format!("wrong: row {} {what}", data.state_row));
    if data.positions != wanted.sources {
        let tolerant = shape.keys.dtype == Dtype::F32;
        let near = Near::of(policy.score, wanted.threshold, shape.keys.head_dim);
        if !tolerant || !near.accepts(&order_keys, &data.positions, policy.order) {
            let slot = data.positions.iter().zip(&wanted.sources).position(|(a, b)| a != b);
            return wrong(format!("differs from the reference first at slot {slot:?}"));
        }
    }
    let token_words = (shape.keys.row_bytes() / 4) as usize;
    for (t, (before, after)) in (0..).zip(data.before.iter().zip(&data.after)) {
        let salt = seed_of(data.layer, t);
        let first = data.row * shape.capacity * (token_words as u32);
        for (slot, &position) in data.positions.iter().enumerate() {
            let (from, to) = (position as usize * token_words, slot * token_words);
            let moved = &after[to..to + token_words];
            if moved != &before[from..from + token_words] {
                return wrong(format!("tensor {t} slot {slot} does not hold token {position}"));
            }
            for (i, &word) in (first + to as u32..).zip(moved) {
                sums.add_row_word(salt, i, word);
            }
        }
    }
    for (slot, &position) in (0..).zip(&data.positions) {
        sums.add_position(data.state_row * shape.capacity + slot, position);
    }
    Ok(())
}

/// Scores, lowest first, that the rounding of an f32 device may put on either side of the threshold.
struct Near {
    score: fn(u32) -> f64,
    threshold: f64,
    slack: f64,
}

impl Near {
    /// Within head_dim * 2^-24 of squared norms, relative, or head_dim * 2^-23 of cosines.
    fn of(score: Score, threshold: u32, head_dim: u32) -> Self {
        let score: fn(u32) -> f64 = match score {
            Score::KeyDiff => |key| -f64::from(f32::from_bits(2.0_f32.to_bits().saturating_sub(key.saturating_sub(1)))),
            _ => |key| f64::from(f32::from_bits(key.saturating_sub(1))),
        };
        let relative = f64::from(head_dim) / f64::from(1 << 24);
        let at = score(threshold);
        Self { score, threshold: at, slack: if at < 0.0 { 2.0 * relative } else { at * relative } }
    }

    /// Whether a set that differs from the reference's does so only there, and lies in the order that was asked for.
    fn accepts(&self, order_keys: &[u32], positions: &[u32], order: Order) -> bool {
        let mut is_kept = vec![false; order_keys.len()];
        for &position in positions {
            match is_kept.get_mut(position as usize) {
                Some(kept) if !*kept => *kept = true,
                _ => return false,
            }
        }
        let set_ok = order_keys.iter().zip(&is_kept).all(|(&key, &kept)| {
            let above = (self.score)(key) - self.threshold;
            if kept { above <= self.slack } else { above >= -self.slack }
        });
        let budget = positions.len() as u32;
        let movers = positions.iter().filter(|&&p| p >= budget);
        let order_ok = match order {
            Order::Fill => movers.is_sorted() && (0..).zip(positions).all(|(slot, &p)| p >= budget || p == slot),
            _ => positions.is_sorted(),
        };
        set_ok && order_ok
    }
}
