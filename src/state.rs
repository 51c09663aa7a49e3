//! The cache state on the GPU: lengths, positions, tokens seen, status.

use crate::error::{ArgumentError, BuildError};
use crate::kernel::{Checks, Kernels};
use crate::policy::Policy;
use crate::score::sums_layout;
use crate::shape::KvShape;

/// Sticky bits of a layer's status word. They are set by the GPU and cleared by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u32);

impl Status {
    /// A length was above the capacity; it was taken as the capacity.
    pub const LENGTH_OVER_CAPACITY: Self = Self(1);
    /// A budget had to be raised to the number of protected tokens, or to one token.
    pub const BUDGET_RAISED: Self = Self(2);
    /// A sequence of a paged cache was left as it is: its table has an id that the pool has not, or one twice, or a page
    /// to be written that another sequence has too.
    pub const BAD_PAGE: Self = Self(4);
    /// A key had a NaN element, or its squared norm was infinite; of [`Score::ValueKeyRatio`](crate::Score::ValueKeyRatio) a
    /// key or a value.
    pub const NON_FINITE_KEY: Self = Self(8);
    /// A token of a policy with cached norms had none, since it was appended after the last
    /// [`Bound::record_norms`](crate::Bound::record_norms) or beyond its `max_new`. It was kept, and will be until the norms of
    /// its row are taken anew: write 0 to the row's `scored` ([`StateOffsets`]), then record them for all of its tokens.
    pub const NORM_MISSING: Self = Self(16);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Word offsets of the parts of [`CacheState::meta`], for callers' own shaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateOffsets {
    /// `num_seen[layer, sequence]`: tokens seen so far.
    pub num_seen: u32,
    /// `inactive[sequence]`: non-zero leaves the sequence as it is.
    pub inactive: u32,
    /// `lengths[layer, row]`: tokens in the cache.
    pub lengths: u32,
    /// `compacted[layer, row]`: slots below this have their position stored; those at and above it were appended since.
    /// A shader of the caller's that shortens a row and then appends to it other than by
    /// [`Bound::record_append`](crate::Bound::record_append) lowers this and `scored` to the shortened length.
    pub compacted: u32,
    /// `scored[layer, row]`: slots below this have their norm in [`CacheState::key_norms`].
    pub scored: u32,
    /// `segments[sequence, 8, 4]`: first position, first position after, tokens kept, unused; see
    /// [`CacheState::set_segments`].
    pub segments: u32,
    /// `first_writable[sequence]`: what lies before it stays as it is, as a prefix that other sequences share: pages of a
    /// paged cache, else tokens.
    pub first_writable: u32,
    /// `skipped[layer, sequence]`, of a paged cache: 1 where the last compression left the sequence alone because it is
    /// inactive, 2 because of its table.
    pub skipped: u32,
    /// Words in all.
    pub len: u32,
}

impl StateOffsets {
    /// Offsets for a shape.
    #[must_use]
    pub const fn of(shape: &KvShape) -> Self {
        let rows = shape.num_layers * shape.rows_per_layer();
        let num_seen = 0;
        let inactive = shape.num_layers * shape.batch_size;
        let lengths = inactive + shape.batch_size;
        let compacted = lengths + rows;
        let scored = compacted + rows;
        let segments = scored + rows;
        let first_writable = segments + shape.batch_size * MAX_SEGMENTS * SEGMENT_WORDS;
        let skipped = first_writable + shape.batch_size;
        let len = skipped + shape.num_layers * shape.batch_size;
        Self { num_seen, inactive, lengths, compacted, scored, segments, first_writable, skipped, len }
    }
}

/// Most segments of a sequence.
pub const MAX_SEGMENTS: u32 = 8;
const SEGMENT_WORDS: u32 = 4;

/// A range of original positions that keeps tokens of its own, in every layer and head of its sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Original positions.
    pub positions: std::ops::Range<u32>,
    /// Tokens of the range that are kept in any case: its lowest order keys, as far as it has tokens left. Those that are
    /// protected (sinks, recent tokens, a prefix) are the first of them.
    pub min_tokens: u32,
}

impl Segment {
    /// A range of which every token is kept.
    #[must_use]
    pub const fn pinned(positions: std::ops::Range<u32>) -> Self {
        Self { positions, min_tokens: u32::MAX }
    }
}

/// Lengths, positions, tokens seen and status of a cache, in buffers of u32 words that the caller's own shaders may
/// read and write between recordings.
///
/// A slot `s` of a row that holds `len` tokens has the original position `positions[s]` where `s < compacted`, else
/// `num_seen - (len - s)`: tokens appended since the last compression sit at the end. A runtime needs both the physical
/// length (how many slots to attend to) and the original position (where RoPE continues: at `num_seen`).
#[derive(Debug, Clone)]
pub struct CacheState {
    pub(crate) shape: KvShape,
    meta: wgpu::Buffer,
    positions: wgpu::Buffer,
    status: wgpu::Buffer,
    append_counts: wgpu::Buffer,
    key_norms: wgpu::Buffer,
    has_norms: bool,
    key_sums: wgpu::Buffer,
    /// Words between rows of the sums, and from a row's first to its whole sum.
    sums_place: Option<(u32, u32)>,
}

/// Records of [`Bound::record_append`](crate::Bound::record_append) that can be in flight with counts of their own.
pub const NUM_APPEND_SLOTS: u32 = 8;

impl CacheState {
    pub(crate) fn new(
        kernels: &Kernels,
        shape: &KvShape,
        policy: &Policy,
        checks: &mut Checks,
    ) -> Result<Self, BuildError> {
        let (has_norms, has_sums) = (policy.cached_norms, policy.caches_sums());
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let rows = u64::from(shape.num_layers) * u64::from(shape.rows_per_layer());
        // The counters are bound whole, the positions in windows.
        let meta_bytes = u64::from(StateOffsets::of(shape).len) * 4;
        let available = kernels.capabilities.max_binding_bytes;
        if meta_bytes > available {
            return Err(BuildError::Limit { limit: "max_storage_buffer_binding_size", needed: meta_bytes, available });
        }
        let mut buffer = |label, words: u64| {
            let size = (words * 4).next_multiple_of(256);
            let available = kernels.capabilities.max_buffer_bytes;
            if size > available {
                return Err(BuildError::Limit { limit: "max_buffer_size", needed: size, available });
            }
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            Ok(checks.guard(&kernels.device, label, || kernels.device.create_buffer(&descriptor)))
        };
        Ok(Self {
            shape: *shape,
            meta: buffer("keynorm.state.meta", StateOffsets::of(shape).len.into())?,
            positions: buffer("keynorm.state.positions", rows * u64::from(shape.capacity))?,
            status: buffer("keynorm.state.status", shape.num_layers.into())?,
            key_norms: buffer("keynorm.state.key_norms", if has_norms { rows * u64::from(shape.capacity) } else { 1 })?,
            has_norms,
            key_sums: buffer(
                "keynorm.state.key_sums",
                if has_sums { rows * u64::from(sums_layout(shape, policy).0) } else { 1 },
            )?,
            sums_place: has_sums.then(|| sums_layout(shape, policy)),
            append_counts: buffer(
                "keynorm.state.append_counts",
                u64::from(append_slot_words(shape)) * u64::from(NUM_APPEND_SLOTS),
            )?,
        })
    }

    /// Tokens seen, lengths: u32 words at [`StateOffsets`]. Usage `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn meta(&self) -> &wgpu::Buffer {
        &self.meta
    }

    /// Original positions: u32 `[num_layers, batch_size * num_kv_heads, capacity]`, valid below `compacted`.
    /// Usage `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn positions(&self) -> &wgpu::Buffer {
        &self.positions
    }

    /// Sums of the rows' normalised keys, f32 `[head_dim]` each at [`CacheState::key_sums_place`], among those of tiles. `None`
    /// without [`Policy::cached_norms`](crate::Policy::cached_norms) and [`Score::KeyDiff`](crate::Score::KeyDiff).
    /// Usage `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn key_sums(&self) -> Option<&wgpu::Buffer> {
        if self.sums_place.is_some() { Some(&self.key_sums) } else { None }
    }

    /// Where [`CacheState::key_sums`] holds the sum of row 0 of layer 0, and how far the next row's is from there, in words.
    #[must_use]
    pub fn key_sums_place(&self) -> Option<(u32, u32)> {
        self.sums_place.map(|(stride, offset)| (offset, stride))
    }

    /// The sums, or what is bound in their place.
    pub(crate) const fn key_sums_or_dummy(&self) -> &wgpu::Buffer {
        &self.key_sums
    }

    /// Whether it keeps what a policy's plan reads of it.
    pub(crate) fn serves(&self, policy: &Policy) -> bool {
        !policy.cached_norms || (self.has_norms && self.sums_place.is_some() == policy.caches_sums())
    }

    /// Squared L2 norms of the keys by slot (with `KeyDiff`, 1 - cosine in place of a norm): f32 `[num_layers, batch_size *
    /// num_kv_heads, capacity]`, valid below `scored`, NaN for a key with a NaN element; the bits 0xFFFF_FFFF stand for a norm
    /// that is not known. `None` without [`Policy::cached_norms`](crate::Policy::cached_norms). Usage `STORAGE | COPY_SRC |
    /// COPY_DST`.
    #[must_use]
    pub const fn key_norms(&self) -> Option<&wgpu::Buffer> {
        if self.has_norms { Some(&self.key_norms) } else { None }
    }

    /// The norms, or what is bound in their place.
    pub(crate) const fn norms_or_dummy(&self) -> &wgpu::Buffer {
        &self.key_norms
    }

    /// Sticky bits, one u32 a layer; see [`Status`]. Usage `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn status(&self) -> &wgpu::Buffer {
        &self.status
    }

    pub(crate) const fn append_counts(&self) -> &wgpu::Buffer {
        &self.append_counts
    }

    /// Word offsets within [`CacheState::meta`].
    #[must_use]
    pub const fn offsets(&self) -> StateOffsets {
        StateOffsets::of(&self.shape)
    }

    /// Declares a fresh cache: sequence `b` holds `lengths[b]` tokens in every layer and head, at positions
    /// `0..lengths[b]`, and nothing has been dropped. Written through the queue, so it takes effect before the next
    /// submission; call it outside recording. Cached norms count as unknown then; activity, prefixes and segments stay.
    ///
    /// # Errors
    /// A count other than `batch_size`; a length above the capacity.
    pub fn set_lengths(&self, queue: &wgpu::Queue, lengths: &[u32]) -> Result<(), ArgumentError> {
        let shape = &self.shape;
        check_lengths("lengths", lengths, shape)?;
        let o = self.offsets();
        let num_seen: Vec<u32> = (0..shape.num_layers).flat_map(|_| lengths.iter().copied()).collect();
        let heads = shape.num_kv_heads as usize;
        let rows: Vec<u32> = num_seen.iter().flat_map(|&n| std::iter::repeat_n(n, heads)).collect();
        self.write(queue, o.num_seen, &num_seen);
        self.write(queue, o.lengths, &rows);
        self.write(queue, o.compacted, &vec![0; rows.len()]);
        self.write(queue, o.scored, &vec![0; rows.len()]);
        Ok(())
    }

    /// Empties one sequence: length, compacted prefix, cached norms and tokens seen become 0 in every layer. Activity, its
    /// segments and its prefix ([`CacheState::set_first_writable`]) stay: set them for the one that takes its place.
    ///
    /// # Errors
    /// A sequence that the shape does not have.
    pub fn reset_sequence(&self, queue: &wgpu::Queue, sequence: u32) -> Result<(), ArgumentError> {
        let shape = &self.shape;
        self.check_sequence(sequence)?;
        let o = self.offsets();
        let zeros = vec![0; shape.num_kv_heads as usize];
        for layer in 0..shape.num_layers {
            let row = layer * shape.rows_per_layer() + sequence * shape.num_kv_heads;
            self.write(queue, o.num_seen + layer * shape.batch_size + sequence, &[0]);
            self.write(queue, o.lengths + row, &zeros);
            self.write(queue, o.compacted + row, &zeros);
            self.write(queue, o.scored + row, &zeros);
        }
        Ok(())
    }

    /// Records the copy of all that this state holds into `other`, whatever that held: for a cache that grows, whose keys and
    /// values the caller moves. `other` is of a plan for the same layers, sequences and heads with at least this capacity, and
    /// keeps the same of norms, scores and sums. Slots of append counts are not copied.
    ///
    /// # Errors
    /// A state of another geometry, of less capacity, or that keeps something else; this state itself. Nothing is recorded then.
    pub fn copy_into(&self, encoder: &mut wgpu::CommandEncoder, other: &Self) -> Result<(), ArgumentError> {
        let (from, to) = (self.shape.capacity, other.shape.capacity);
        let keeps = |state: &Self| (state.has_norms, state.sums_place.is_some());
        if (KvShape { capacity: to, ..self.shape }) != other.shape || keeps(self) != keeps(other) {
            return Err(ArgumentError::WrongPlan { argument: "other" });
        }
        if from > to {
            return Err(ArgumentError::TooLarge { argument: "capacity", got: from.into(), limit: to.into() });
        }
        if self.meta == other.meta {
            return Err(ArgumentError::Overlap { first: "state", second: "other" });
        }
        encoder.copy_buffer_to_buffer(&self.meta, 0, &other.meta, 0, self.meta.size());
        encoder.copy_buffer_to_buffer(&self.status, 0, &other.status, 0, self.status.size());
        let rows = u64::from(self.shape.num_layers) * u64::from(self.shape.rows_per_layer());
        let mut copy_rows = |from: &wgpu::Buffer, to: &wgpu::Buffer, places: [(u32, u32); 2], words: u32| {
            for row in 0..rows {
                let [source, target] = places.map(|(stride, offset)| (row * u64::from(stride) + u64::from(offset)) * 4);
                encoder.copy_buffer_to_buffer(from, source, to, target, u64::from(words) * 4);
            }
        };
        let by_capacity = [(from, 0), (to, 0)];
        copy_rows(&self.positions, &other.positions, by_capacity, from);
        if self.has_norms {
            copy_rows(&self.key_norms, &other.key_norms, by_capacity, from);
        }
        if let Some(places) = self.sums_place.zip(other.sums_place) {
            copy_rows(&self.key_sums, &other.key_sums, places.into(), self.shape.keys.head_dim);
        }
        Ok(())
    }

    /// Says which sequences take part; the others are neither read nor changed. All are active at first.
    ///
    /// # Errors
    /// A count other than `batch_size`.
    pub fn set_active(&self, queue: &wgpu::Queue, active: &[bool]) -> Result<(), ArgumentError> {
        check_count("active", active.len(), self.shape.batch_size as usize)?;
        let words: Vec<u32> = active.iter().map(|&a| u32::from(!a)).collect();
        self.write(queue, self.offsets().inactive, &words);
        Ok(())
    }

    /// Says from where on each sequence may be written: before it lie pages of a paged cache (else tokens) that other
    /// sequences may share. Their tokens are kept where they are and count towards the budget as protected ones do, unless the
    /// caller writes order keys of its own ([`Workspace::order_keys`](crate::Workspace::order_keys)). All 0 at first.
    ///
    /// # Errors
    /// A count other than `batch_size`.
    pub fn set_first_writable(&self, queue: &wgpu::Queue, first: &[u32]) -> Result<(), ArgumentError> {
        check_count("first", first.len(), self.shape.batch_size as usize)?;
        self.write(queue, self.offsets().first_writable, first);
        Ok(())
    }

    /// Sets the segments of one sequence, for a policy with [`Policy::segments`](crate::Policy::segments): pinned ranges
    /// ([`Segment::pinned`]) and quotas. They stay until they are set again.
    ///
    /// # Errors
    /// A sequence that the shape does not have; more than [`MAX_SEGMENTS`]; a range that ends before its start, or that
    /// shares positions with another.
    pub fn set_segments(&self, queue: &wgpu::Queue, sequence: u32, segments: &[Segment]) -> Result<(), ArgumentError> {
        self.check_sequence(sequence)?;
        if segments.len() > MAX_SEGMENTS as usize {
            return Err(ArgumentError::TooLarge {
                argument: "segments.len()",
                got: segments.len() as u64,
                limit: MAX_SEGMENTS.into(),
            });
        }
        let mut words = vec![0; (MAX_SEGMENTS * SEGMENT_WORDS) as usize];
        for (index, segment) in segments.iter().enumerate() {
            let (start, end) = (segment.positions.start, segment.positions.end);
            let shares = |s: &Segment| start.max(s.positions.start) < end.min(s.positions.end);
            if start > end || segments[..index].iter().any(shares) {
                return Err(ArgumentError::Segment { argument: "segments", index, start, end });
            }
            words[index * 4..][..3].copy_from_slice(&[start, end, segment.min_tokens]);
        }
        self.write(queue, self.offsets().segments + sequence * MAX_SEGMENTS * SEGMENT_WORDS, &words);
        Ok(())
    }

    fn check_sequence(&self, sequence: u32) -> Result<(), ArgumentError> {
        if sequence < self.shape.batch_size {
            return Ok(());
        }
        Err(ArgumentError::IndexOutOfRange {
            argument: "sequence",
            got: sequence.into(),
            limit: self.shape.batch_size.into(),
        })
    }

    /// Writes one slot of counts for [`Bound::record_append`](crate::Bound::record_append), or for
    /// [`Bound::record_truncate`](crate::Bound::record_truncate): tokens appended to each sequence, or taken back. Records in
    /// flight at one time that need different counts take different slots; a decode loop that appends one token a step writes
    /// its slot once.
    ///
    /// # Errors
    /// A slot of [`NUM_APPEND_SLOTS`] or more; a count other than `batch_size`, or one above the capacity.
    pub fn set_append_counts(&self, queue: &wgpu::Queue, slot: u32, counts: &[u32]) -> Result<(), ArgumentError> {
        check_lengths("counts", counts, &self.shape)?;
        check_slot(slot)?;
        let offset = u64::from(append_slot_words(&self.shape)) * u64::from(slot) * 4;
        queue.write_buffer(&self.append_counts, offset, bytemuck::cast_slice(counts));
        Ok(())
    }

    /// Clears the sticky status bits of every layer.
    pub fn clear_status(&self, queue: &wgpu::Queue) {
        queue.write_buffer(&self.status, 0, bytemuck::cast_slice(&vec![0u32; self.shape.num_layers as usize]));
    }

    fn write(&self, queue: &wgpu::Queue, word: u32, data: &[u32]) {
        queue.write_buffer(&self.meta, u64::from(word) * 4, bytemuck::cast_slice(data));
    }
}

/// Words of an append slot: a multiple of 64, so that every slot can be bound.
pub(crate) const fn append_slot_words(shape: &KvShape) -> u32 {
    shape.batch_size.next_multiple_of(64)
}

pub(crate) const fn check_slot(slot: u32) -> Result<(), ArgumentError> {
    if slot < NUM_APPEND_SLOTS {
        return Ok(());
    }
    Err(ArgumentError::IndexOutOfRange { argument: "slot", got: slot as u64, limit: NUM_APPEND_SLOTS as u64 })
}

/// A number of tokens for each sequence.
fn check_lengths(argument: &'static str, lengths: &[u32], shape: &KvShape) -> Result<(), ArgumentError> {
    let capacity = shape.capacity;
    check_count(argument, lengths.len(), shape.batch_size as usize)?;
    match lengths.iter().position(|&len| len > capacity) {
        Some(index) => Err(ArgumentError::LengthOverCapacity { argument, index, got: lengths[index], capacity }),
        None => Ok(()),
    }
}

pub(crate) const fn check_count(argument: &'static str, got: usize, expected: usize) -> Result<(), ArgumentError> {
    if got == expected {
        return Ok(());
    }
    Err(ArgumentError::WrongCount { argument, got, expected })
}
