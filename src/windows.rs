//! Windows: runs of whole rows whose bytes fit one binding; where a row alone does not, segments of its tokens that do.

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

/// How the rows of a layer are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerWindows {
    /// Whole rows; `joined` where keys and values are bound once.
    Rows { windows: Vec<Window>, joined: bool },
    /// A row exceeds a binding: each tensor by itself, by segments of tokens.
    Segments { keys: Vec<RowGroup>, values: Vec<RowGroup> },
}

/// Neighbouring rows whose tokens lie side by side, so that the same slots of all of them make a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowGroup {
    pub first_row: u32,
    pub num_rows: u32,
    pub segments: Vec<Segment>,
}

/// Slots of a group's rows, and the range that holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub first_slot: u32,
    pub end_slot: u32,
    pub range: BoundRange,
}

/// The windows of a layer.
pub(crate) fn layer_windows(keys: &Lattice, values: &Lattice, same_buffer: bool, limits: WindowLimits) -> LayerWindows {
    let windows = cover(keys, values, false, limits).and_then(|split| {
        if !same_buffer || !split.iter().any(|w| w.keys.intersects(w.values)) {
            return Some((split, false));
        }
        Some((cover(keys, values, true, limits)?, true))
    });
    match windows {
        Some((windows, joined)) => LayerWindows::Rows { windows, joined },
        None => LayerWindows::Segments { keys: segment(keys, limits), values: segment(values, limits) },
    }
}

/// Rows in groups, their tokens in segments that each fit a binding.
fn segment(lattice: &Lattice, limits: WindowLimits) -> Vec<RowGroup> {
    let num_rows = lattice.batch_size * lattice.num_kv_heads;
    let mut groups = Vec::new();
    let mut first_row = 0;
    while first_row < num_rows {
        let row_span = |row| {
            let start = lattice.row_start(row);
            (start, start + lattice.row_bytes)
        };
        // Of one token of each row.
        let mut span = row_span(first_row);
        let mut end_row = first_row + 1;
        while end_row < num_rows.min(first_row.saturating_add(limits.max_rows)) {
            let next = union(span, row_span(end_row));
            if next.1 - next.0 > lattice.token_stride.min(limits.max_binding_bytes / 2) {
                break;
            }
            (span, end_row) = (next, end_row + 1);
        }
        groups.push(RowGroup { first_row, num_rows: end_row - first_row, segments: segments(lattice, span, limits) });
        first_row = end_row;
    }
    groups
}

/// Segments of as many tokens as fit. They meet at an aligned address if a token begins at one, so that their ranges are
/// disjoint: browsers refuse a dispatch that binds a byte twice.
fn segments(lattice: &Lattice, (start, end): (u64, u64), limits: WindowLimits) -> Vec<Segment> {
    let capacity = u64::from(lattice.capacity);
    let stride = lattice.token_stride;
    let span = |first: u64, end_slot: u64| (start + first * stride, end + (end_slot - 1) * stride);
    let is_aligned = |slot: u64| (start + slot * stride).is_multiple_of(limits.offset_alignment);
    let mut segments = Vec::new();
    let mut first = 0;
    while first < capacity {
        let bound_start = aligned(span(first, first + 1), limits).start;
        // The last token of `most` still ends in the binding; a token is at most half of one, so that one fits.
        let room = (limits.max_binding_bytes + bound_start).saturating_sub(end);
        let most = room.checked_div(stride).map_or(capacity, |last| last + 1).clamp(first + 1, capacity);
        let mut candidates = (first + 1..=most).rev().take(64);
        let end_slot = candidates.find(|&slot| slot == capacity || is_aligned(slot)).unwrap_or(most);
        segments.push(Segment {
            first_slot: slot_of(first),
            end_slot: slot_of(end_slot),
            range: aligned(span(first, end_slot), limits),
        });
        first = end_slot;
    }
    segments
}

fn slot_of(slot: u64) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

/// Windows of whole rows, if each row fits a binding.
fn cover(keys: &Lattice, values: &Lattice, joined: bool, limits: WindowLimits) -> Option<Vec<Window>> {
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
        let window = accepted?;
        first_row += window.num_rows;
        windows.push(window);
    }
    Some(windows)
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
