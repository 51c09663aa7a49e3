//! Windows: runs of whole rows whose bytes fit one binding; where a row alone does not, bands of its tokens that do.

use std::ops::Range;

use crate::lattice::Lattice;

/// A range of a buffer that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BoundRange {
    /// First byte, aligned for a binding.
    pub start: u64,
    pub size: u64,
}

impl BoundRange {
    /// From the aligned address below.
    pub(crate) fn aligned((start, end): (u64, u64), limits: WindowLimits) -> Self {
        let start = start / limits.offset_alignment * limits.offset_alignment;
        Self { start, size: end - start }
    }

    fn end(self) -> u64 {
        self.start + self.size
    }

    pub(crate) fn intersects(self, other: Self) -> bool {
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

impl Window {
    pub const fn rows(&self) -> Range<u32> {
        self.first_row..self.first_row + self.num_rows
    }
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
    /// A row exceeds a binding: each tensor by itself, by bands of tokens.
    Bands { keys: Vec<RowGroup>, values: Vec<RowGroup> },
}

/// Neighbouring rows whose tokens lie side by side, so that the same slots of all of them make a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowGroup {
    pub first_row: u32,
    pub num_rows: u32,
    pub bands: Vec<Band>,
}

/// Slots of a group's rows, and the range that holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Band {
    pub first_slot: u32,
    pub end_slot: u32,
    pub range: BoundRange,
}

/// The windows of a layer, whose rows of `scores` fit a binding too, as each does.
pub(crate) fn layer_windows(
    (keys, values): (&Lattice, &Lattice),
    scores: Option<&Lattice>,
    same_buffer: bool,
    limits: WindowLimits,
) -> LayerWindows {
    let windows = |ranges| cover((keys, values), scores, ranges, limits);
    let apart = windows(if same_buffer { Ranges::Disjoint } else { Ranges::Any });
    // Keys and values whose ranges overlap at one aligned address alone keep apart in more windows; those that interleave cannot.
    // One binding holds both where that takes fewer.
    let joined = if same_buffer { windows(Ranges::Joined) } else { None };
    match (apart, joined) {
        (apart, Some(windows)) if apart.as_ref().is_none_or(|apart| windows.len() < apart.len()) => {
            LayerWindows::Rows { windows, joined: true }
        }
        (Some(windows), _) => LayerWindows::Rows { windows, joined: false },
        _ => LayerWindows::Bands { keys: band(keys, limits), values: band(values, limits) },
    }
}

/// Rows in groups, their tokens in bands that each fit a binding.
fn band(lattice: &Lattice, limits: WindowLimits) -> Vec<RowGroup> {
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
        groups.push(RowGroup { first_row, num_rows: end_row - first_row, bands: bands(lattice, span, limits) });
        first_row = end_row;
    }
    groups
}

/// Bands of as many tokens as fit. They meet at an aligned address if a token begins at one, so that their ranges are
/// disjoint: browsers refuse a dispatch that binds a byte twice.
fn bands(lattice: &Lattice, (start, end): (u64, u64), limits: WindowLimits) -> Vec<Band> {
    let capacity = u64::from(lattice.capacity);
    let stride = lattice.token_stride;
    let span = |first: u64, end_slot: u64| (start + first * stride, end + (end_slot - 1) * stride);
    let is_aligned = |slot: u64| (start + slot * stride).is_multiple_of(limits.offset_alignment);
    let mut bands = Vec::new();
    let mut first = 0;
    while first < capacity {
        let bound_start = BoundRange::aligned(span(first, first + 1), limits).start;
        // The last token of `most` still ends in the binding; a token is at most half of one, so that one fits.
        let room = (limits.max_binding_bytes + bound_start).saturating_sub(end);
        let most = room.checked_div(stride).map_or(capacity, |last| last + 1).clamp(first + 1, capacity);
        let mut candidates = (first + 1..=most).rev().take(64);
        let end_slot = candidates.find(|&slot| slot == capacity || is_aligned(slot)).unwrap_or(most);
        bands.push(Band {
            first_slot: slot_of(first),
            end_slot: slot_of(end_slot),
            range: BoundRange::aligned(span(first, end_slot), limits),
        });
        first = end_slot;
    }
    bands
}

fn slot_of(slot: u64) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

/// The ranges of keys and values of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ranges {
    /// Of two buffers.
    Any,
    /// Of one buffer.
    Disjoint,
    /// One that holds both.
    Joined,
}

/// Windows of whole rows; `None` where a row has none.
fn cover(
    (keys, values): (&Lattice, &Lattice),
    scores: Option<&Lattice>,
    ranges_of: Ranges,
    limits: WindowLimits,
) -> Option<Vec<Window>> {
    let num_rows = keys.batch_size * keys.num_kv_heads;
    let mut windows = Vec::new();
    let mut first_row = 0;
    while first_row < num_rows {
        let mut accepted = None;
        let mut spans = [span_of(keys, first_row), span_of(values, first_row)];
        let mut scored = scores.map(|s| span_of(s, first_row));
        for row in first_row..num_rows.min(first_row.saturating_add(limits.max_rows)) {
            spans[0] = union(spans[0], span_of(keys, row));
            spans[1] = union(spans[1], span_of(values, row));
            let ranges = if ranges_of == Ranges::Joined {
                let both = BoundRange::aligned(union(spans[0], spans[1]), limits);
                [both, both]
            } else {
                spans.map(|s| BoundRange::aligned(s, limits))
            };
            scored = scores.zip(scored).map(|(s, span)| union(span, span_of(s, row)));
            let scored = scored.map(|span| BoundRange::aligned(span, limits));
            if ranges_of == Ranges::Disjoint && ranges[0].intersects(ranges[1]) {
                break;
            }
            if ranges.into_iter().chain(scored).any(|r| r.size > limits.max_binding_bytes) {
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

/// What a window's rows of another tensor span.
pub(crate) fn rows_range(lattice: &Lattice, rows: Range<u32>, limits: WindowLimits) -> BoundRange {
    let span = rows.map(|row| span_of(lattice, row)).reduce(union);
    BoundRange::aligned(span.unwrap_or((0, 0)), limits)
}

/// Bytes of the largest range that one row is bound by.
pub(crate) fn widest_row(lattice: &Lattice, limits: WindowLimits) -> u64 {
    let rows = 0..lattice.batch_size * lattice.num_kv_heads;
    rows.map(|row| rows_range(lattice, row..row + 1, limits).size).max().unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Dtype, KvShape, Strides, TensorSpec};

    const LIMITS: WindowLimits = WindowLimits { max_binding_bytes: 1 << 16, offset_alignment: 256, max_rows: 100 };

    /// 300,000 tokens of 64 f16 elements from beyond 4 GiB on, which a buffer of wgpu 30 has where indirect calls are not
    /// validated.
    fn lattice(offset: u64, strides: &Strides) -> Lattice {
        let spec = TensorSpec::new(Dtype::F16, 64);
        let shape =
            KvShape { num_layers: 1, batch_size: 2, num_kv_heads: 3, capacity: 300_000, keys: spec, values: spec };
        Lattice::new("keys", &shape, &spec, offset, strides).expect("a sound tensor")
    }

    #[test]
    fn bands_hold_every_token_once_and_fit() {
        let nhd = Strides::nhd(3, 300_000, 64);
        let token_major = Strides { batch: 3 * 64, head: 64, token: 6 * 64 };
        let padded = Strides { batch: 1 << 33, head: (1 << 31) + 2, token: 66 };
        for (strides, rows_a_group) in [(Strides::hnd(3, 300_000, 64), 1), (nhd, 3), (token_major, 6), (padded, 1)] {
            for offset in [0, 4, (5 << 30) + 12] {
                let lattice = lattice(offset, &strides);
                let LayerWindows::Bands { keys, values } = layer_windows((&lattice, &lattice), None, true, LIMITS)
                else {
                    panic!("a row fits a binding");
                };
                assert_eq!(keys, values, "two equal tensors");
                assert_eq!(
                    keys.iter().map(|g| g.num_rows).collect::<Vec<_>>(),
                    vec![rows_a_group; 6 / rows_a_group as usize]
                );
                for group in keys {
                    check_group(&lattice, &group);
                }
            }
        }
    }

    /// Values behind keys, between two aligned addresses: `(rows of each window, joined)`.
    #[test]
    fn tensors_that_meet_have_few_windows() {
        let spec = TensorSpec::new(Dtype::F16, 64);
        let of = |offset: u64, strides: Strides, max_binding_bytes: u64| {
            let shape =
                KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 4, capacity: 120, keys: spec, values: spec };
            let lattice = |offset| Lattice::new("keys", &shape, &spec, offset, &strides).expect("a sound tensor");
            let (keys, values) = (lattice(64), lattice(64 + offset));
            let LayerWindows::Rows { windows, joined } =
                layer_windows((&keys, &values), None, true, WindowLimits { max_binding_bytes, ..LIMITS })
            else {
                panic!("every row fits a binding");
            };
            for w in &windows {
                let fits = w.keys.size.max(w.values.size) <= max_binding_bytes;
                assert!(fits && joined == w.keys.intersects(w.values), "{w:?}");
            }
            (windows.iter().map(|w| w.num_rows).collect::<Vec<_>>(), joined)
        };
        let hnd = Strides::hnd(4, 120, 64);
        assert_eq!(of(61_440, hnd, 1 << 16), (vec![3, 1], false), "both do not fit one binding");
        assert_eq!(of(61_440, hnd, 1 << 17), (vec![4], true), "both do");
        assert_eq!(of(61_440 + 192, hnd, 1 << 17), (vec![4], false), "they begin at an aligned address");
        let interleaved = Strides { batch: 4 * 240 * 64, head: 240 * 64, token: 128 };
        assert_eq!(of(128, interleaved, 1 << 17), (vec![4], true), "token by token");
    }

    fn check_group(lattice: &Lattice, group: &RowGroup) {
        let mut next = 0;
        for band in &group.bands {
            assert_eq!(band.first_slot, next, "a gap or an overlap");
            next = band.end_slot;
            assert!(band.range.size <= LIMITS.max_binding_bytes, "{band:?}");
            assert!(band.range.start.is_multiple_of(LIMITS.offset_alignment), "{band:?}");
            for row in group.first_row..group.first_row + group.num_rows {
                let token = |slot: u32| lattice.row_start(row) + u64::from(slot) * lattice.token_stride;
                assert!(token(band.first_slot) >= band.range.start, "{band:?}");
                assert!(token(band.end_slot - 1) + lattice.row_bytes <= band.range.end(), "{band:?}");
            }
        }
        assert_eq!(next, lattice.capacity, "the last token");
        let full = group.bands.iter().filter(|s| s.range.size > LIMITS.max_binding_bytes / 2).count();
        assert!(full + 1 >= group.bands.len(), "bands are smaller than they could be");
        if lattice.offset == 0 && lattice.token_stride.is_multiple_of(128) {
            let disjoint = group.bands.windows(2).all(|s| !s[0].range.intersects(s[1].range));
            assert!(disjoint, "aligned rows are bound twice: {:?}", group.bands);
        }
    }
}
