//! Where rows lie in a buffer, and whether two tensors share a byte. No GPU here.

use crate::error::ArgumentError;
use crate::shape::{KvShape, Strides, TensorSpec};

/// Where the rows of one tensor lie in a buffer, in bytes. The base of all address arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lattice {
    pub argument: &'static str,
    pub offset: u64,
    pub batch_stride: u64,
    pub head_stride: u64,
    pub token_stride: u64,
    pub row_bytes: u64,
    /// Rows are not made of whole 16-byte chunks, or not read by them.
    pub by_words: bool,
    pub batch_size: u32,
    pub num_kv_heads: u32,
    pub capacity: u32,
}

impl Lattice {
    pub fn new(
        argument: &'static str,
        shape: &KvShape,
        spec: &TensorSpec,
        offset: u64,
        strides: &Strides,
    ) -> Result<Self, ArgumentError> {
        if !offset.is_multiple_of(4) {
            return Err(ArgumentError::Misaligned { argument: offset_name(argument), got: offset });
        }
        let size = u64::from(spec.dtype.size_bytes());
        let bytes = |elements: u64| elements.checked_mul(size).ok_or(ArgumentError::AddressOverflow { argument });
        let lattice = Self {
            argument,
            offset,
            batch_stride: bytes(strides.batch)?,
            head_stride: bytes(strides.head)?,
            token_stride: bytes(strides.token)?,
            row_bytes: spec.row_bytes().into(),
            by_words: spec.dtype.is_quantised(),
            batch_size: shape.batch_size,
            num_kv_heads: shape.num_kv_heads,
            capacity: shape.capacity,
        };
        lattice.check_nesting(size)?;
        let steps = [
            (u64::from(shape.batch_size) - 1, lattice.batch_stride),
            (u64::from(shape.num_kv_heads) - 1, lattice.head_stride),
            (u64::from(shape.capacity) - 1, lattice.token_stride),
        ];
        let mut end = offset.checked_add(lattice.row_bytes);
        for (count, stride) in steps {
            end = end.zip(count.checked_mul(stride)).and_then(|(e, s)| e.checked_add(s));
        }
        end.filter(|&e| e < 1 << 62).ok_or(ArgumentError::AddressOverflow { argument })?;
        Ok(lattice)
    }

    /// Each dimension must step over the whole of the next smaller one.
    fn check_nesting(&self, element_bytes: u64) -> Result<(), ArgumentError> {
        let mut dims = [
            ("token", self.token_stride, self.capacity),
            ("head", self.head_stride, self.num_kv_heads),
            ("batch", self.batch_stride, self.batch_size),
        ];
        dims.sort_by_key(|d| d.1);
        let mut extent = self.row_bytes;
        for (dimension, stride, count) in dims {
            if count == 1 {
                continue;
            }
            if stride % 4 != 0 {
                return Err(ArgumentError::Misaligned { argument: stride_name(self.argument), got: stride });
            }
            if stride < extent {
                return Err(ArgumentError::OverlappingRows {
                    argument: self.argument,
                    dimension,
                    got: stride / element_bytes,
                    expected: extent.div_ceil(element_bytes),
                });
            }
            extent = (u64::from(count) - 1)
                .checked_mul(stride)
                .and_then(|s| s.checked_add(extent))
                .ok_or(ArgumentError::AddressOverflow { argument: self.argument })?;
        }
        Ok(())
    }

    /// Whether rows lie as those of `other` do, from another byte on.
    pub fn has_strides_of(&self, other: &Self) -> bool {
        let aligned = |offset: u64| offset.is_multiple_of(16);
        Self { offset: 0, ..*self } == Self { offset: 0, ..*other } && aligned(self.offset) == aligned(other.offset)
    }

    /// First byte of a row of the layer.
    pub fn row_start(&self, row: u32) -> u64 {
        let sequence = u64::from(row / self.num_kv_heads);
        let head = u64::from(row % self.num_kv_heads);
        self.offset + sequence * self.batch_stride + head * self.head_stride
    }

    /// Bytes from a row's first to its last element.
    pub fn row_span(&self) -> u64 {
        (u64::from(self.capacity) - 1) * self.token_stride + self.row_bytes
    }

    /// One past the last byte of the tensor.
    pub fn end(&self) -> u64 {
        let last = |count: u32, stride: u64| (u64::from(count) - 1) * stride;
        self.offset
            + last(self.batch_size, self.batch_stride)
            + last(self.num_kv_heads, self.head_stride)
            + self.row_span()
    }

    /// Whether every address is a multiple of 16 bytes, so that 16-byte accesses serve.
    pub fn is_vec4(&self) -> bool {
        let stride_ok = |count: u32, stride: u64| count == 1 || stride.is_multiple_of(16);
        !self.by_words
            && self.offset.is_multiple_of(16)
            && stride_ok(self.batch_size, self.batch_stride)
            && stride_ok(self.num_kv_heads, self.head_stride)
            && stride_ok(self.capacity, self.token_stride)
    }

    fn dims(&self) -> Vec<(u64, u64)> {
        let mut dims = vec![
            (self.batch_stride, u64::from(self.batch_size)),
            (self.head_stride, u64::from(self.num_kv_heads)),
            (self.token_stride, u64::from(self.capacity)),
        ];
        dims.retain(|d| d.1 > 1);
        dims.sort_by_key(|d| std::cmp::Reverse(d.0));
        dims
    }

    /// Whether two tensors in one buffer share a byte. Exact for equal strides and for disjoint ranges; for lattices whose
    /// strides differ from some dimension inwards the search from there on is bounded and an undecided case counts as an overlap.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.end() <= other.offset || other.end() <= self.offset {
            return false;
        }
        let (a, b) = (self.dims(), other.dims());
        let mut steps = 1 << 22;
        nested_overlap((&a, self.offset, self.row_bytes), (&b, other.offset, other.row_bytes), &mut steps)
    }
}

/// A range of bytes is a lattice of one row.
pub(crate) fn range_lattice(argument: &'static str, offset: u64, bytes: u64) -> Lattice {
    Lattice {
        argument,
        offset,
        batch_stride: 0,
        head_stride: 0,
        token_stride: 0,
        row_bytes: bytes,
        by_words: false,
        batch_size: 1,
        num_kv_heads: 1,
        capacity: 1,
    }
}

/// With nested strides only the two multiples beside the difference can bring rows together in each dimension that both have.
fn nested_overlap(a: Node<'_>, b: Node<'_>, steps: &mut u32) -> bool {
    let (Some(&(stride, count)), true) = (a.0.first(), a.0.first() == b.0.first()) else {
        return descend(a, b, steps);
    };
    let near = (i128::from(b.1) - i128::from(a.1)).div_euclid(i128::from(stride));
    [near, near + 1].into_iter().filter(|m| m.unsigned_abs() < count.into()).any(|m| {
        // The one that lies before the other goes so many strides ahead.
        let ahead = |by: i128| u64::try_from(by.max(0)).unwrap_or(0) * stride;
        nested_overlap((&a.0[1..], a.1 + ahead(m), a.2), (&b.0[1..], b.1 + ahead(-m), b.2), steps)
    })
}

type Node<'a> = (&'a [(u64, u64)], u64, u64);

fn extent((dims, _, bytes): Node<'_>) -> u64 {
    dims.iter().map(|(s, c)| s * (c - 1)).sum::<u64>() + bytes
}

fn descend(a: Node<'_>, b: Node<'_>, steps: &mut u32) -> bool {
    if *steps == 0 {
        return true;
    }
    *steps -= 1;
    let (a_end, b_end) = (a.1 + extent(a), b.1 + extent(b));
    if a_end <= b.1 || b_end <= a.1 {
        return false;
    }
    if a.0.is_empty() && b.0.is_empty() {
        return true;
    }
    // Split the one with the larger extent, visiting only children that can reach the other.
    if b.0.is_empty() || (!a.0.is_empty() && extent(a) >= extent(b)) {
        let (stride, count) = a.0[0];
        let child = extent((&a.0[1..], 0, a.2));
        let first = b.1.saturating_sub(a.1 + child) / stride;
        let last = ((b_end - a.1) / stride).min(count - 1);
        (first..=last).any(|i| descend((&a.0[1..], a.1 + i * stride, a.2), b, steps))
    } else {
        descend(b, a, steps)
    }
}

fn offset_name(argument: &'static str) -> &'static str {
    match argument {
        "keys" => "keys.offset_bytes",
        "values" => "values.offset_bytes",
        "scores" => "scores.offset_bytes",
        other => other,
    }
}

fn stride_name(argument: &'static str) -> &'static str {
    match argument {
        "keys" => "keys.strides",
        "values" => "values.strides",
        "scores" => "scores.strides",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads of `bytes` each side by side within a token, from `offset` in it on.
    fn of_tokens(offset: u64, bytes: u64, capacity: u32) -> Lattice {
        Lattice {
            offset,
            batch_stride: 392 * u64::from(capacity),
            head_stride: bytes,
            token_stride: 392,
            batch_size: 2,
            num_kv_heads: 2,
            capacity,
            ..range_lattice("keys", 0, bytes)
        }
    }

    /// Keys of 128 bytes and values of 68 in a million tokens, beside each other but for as many bytes.
    #[test]
    fn long_rows_interleave_whatever_a_row_has() {
        for capacity in [1, 3, 1_000_000] {
            for (offset, expected) in [(256, false), (255, true), (256 + 4, true)] {
                let (keys, values) = (of_tokens(0, 128, capacity), of_tokens(offset, 68, capacity));
                assert_eq!(keys.overlaps(&values), expected, "{capacity} tokens, values from {offset} on");
                assert_eq!(values.overlaps(&keys), expected, "the other way round");
            }
        }
    }

    /// Against every byte of both, of all offsets and some strides.
    #[test]
    fn overlaps_are_those_of_the_bytes() {
        let bytes_of = |l: &Lattice| {
            let mut bytes = std::collections::BTreeSet::new();
            for row in 0..l.batch_size * l.num_kv_heads {
                for token in 0..u64::from(l.capacity) {
                    let start = l.row_start(row) + token * l.token_stride;
                    bytes.extend(start..start + l.row_bytes);
                }
            }
            bytes
        };
        let of = |offset, (batch_stride, token_stride, head_stride), row_bytes| Lattice {
            offset,
            batch_stride,
            token_stride,
            head_stride,
            batch_size: 2,
            num_kv_heads: 2,
            capacity: 3,
            ..range_lattice("keys", 0, row_bytes)
        };
        let strides = [(60, 20, 5), (60, 20, 3), (60, 10, 30), (80, 20, 4), (120, 40, 9)];
        for (a, b) in strides.iter().flat_map(|a| strides.map(|b| (*a, b))) {
            for (offset, row_bytes) in (0..130).flat_map(|offset| [1, 3].map(|bytes| (offset, bytes))) {
                let (a, b) = (of(40, a, 3), of(offset, b, row_bytes));
                let expected = !bytes_of(&a).is_disjoint(&bytes_of(&b));
                assert_eq!(a.overlaps(&b), expected, "{a:?} and {b:?}");
            }
        }
    }
}
