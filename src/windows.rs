//! Windows: runs of whole rows whose bytes fit one binding.

use crate::error::ArgumentError;
use crate::shape::Lattice;

/// A range of a buffer that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BoundRange {
    /// First byte, aligned for a binding.
    pub start: u64,
    pub size: u64,
}

impl BoundRange {
    fn end(self) -> u64 {
        self.start + self.size
    }

    fn intersects(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Rows of one layer that one dispatch handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub first_row: u32,
    pub num_rows: u32,
    pub keys: BoundRange,
    /// Equal to `keys` where both are bound once.
    pub values: BoundRange,
}

/// What a binding may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowLimits {
    pub max_binding_bytes: u64,
    pub offset_alignment: u64,
    pub max_rows: u32,
}

/// The windows of a layer, and whether keys and values are bound once.
pub(crate) fn layer_windows(
    keys: &Lattice,
    values: &Lattice,
    same_buffer: bool,
    limits: WindowLimits,
) -> Result<(Vec<Window>, bool), ArgumentError> {
    let split = cover(keys, values, false, limits)?;
    if !same_buffer || !split.iter().any(|w| w.keys.intersects(w.values)) {
        return Ok((split, false));
    }
    Ok((cover(keys, values, true, limits)?, true))
}

fn cover(keys: &Lattice, values: &Lattice, joined: bool, limits: WindowLimits) -> Result<Vec<Window>, ArgumentError> {
    let num_rows = keys.batch_size * keys.num_kv_heads;
    let mut windows = Vec::new();
    let mut first_row = 0;
    while first_row < num_rows {
        let mut accepted = None;
        let mut spans = [span_of(keys, first_row), span_of(values, first_row)];
        for row in first_row..num_rows.min(first_row.saturating_add(limits.max_rows)) {
            spans[0] = union(spans[0], span_of(keys, row));
            spans[1] = union(spans[1], span_of(values, row));
            let ranges = if joined {
                let both = aligned(union(spans[0], spans[1]), limits);
                [both, both]
            } else {
                spans.map(|s| aligned(s, limits))
            };
            if ranges.iter().any(|r| r.size > limits.max_binding_bytes) {
                break;
            }
            accepted = Some(Window { first_row, num_rows: row - first_row + 1, keys: ranges[0], values: ranges[1] });
        }
        let Some(window) = accepted else {
            let (argument, row_bytes) = if joined {
                let both = union(span_of(keys, first_row), span_of(values, first_row));
                ("keys and values, which are bound as one range,", both.1 - both.0)
            } else if keys.row_span() >= values.row_span() {
                ("keys", keys.row_span())
            } else {
                ("values", values.row_span())
            };
            return Err(ArgumentError::RowExceedsBinding { argument, row_bytes, limit: limits.max_binding_bytes });
        };
        first_row += window.num_rows;
        windows.push(window);
    }
    Ok(windows)
}

fn span_of(lattice: &Lattice, row: u32) -> (u64, u64) {
    let start = lattice.row_start(row);
    (start, start + lattice.row_span())
}

fn union(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0.min(b.0), a.1.max(b.1))
}

fn aligned((start, end): (u64, u64), limits: WindowLimits) -> BoundRange {
    let start = start / limits.offset_alignment * limits.offset_alignment;
    BoundRange { start, size: end - start }
}

/// What a window's rows of another tensor span.
pub(crate) fn rows_range(lattice: &Lattice, window: &Window, limits: WindowLimits) -> BoundRange {
    let rows = window.first_row..window.first_row + window.num_rows;
    let span = rows.map(|row| span_of(lattice, row)).reduce(union);
    aligned(span.unwrap_or((0, 0)), limits)
}

/// Splits rows of scratch into runs of at most `max_rows`.
pub(crate) fn scratch_windows(num_rows: u64, max_rows: u32) -> Vec<(u64, u32)> {
    let mut windows = Vec::new();
    let mut first = 0;
    while first < num_rows {
        let count = u32::try_from(num_rows - first).unwrap_or(u32::MAX).min(max_rows);
        windows.push((first, count));
        first += u64::from(count);
    }
    windows
}
