//! Scratch memory of a plan: order keys, lists, histograms. Never of the size of the cache.

use crate::device::Capabilities;
use crate::error::BuildError;
use crate::kernel::{Checks, Kernels};
use crate::plan::SELECT_TILE;
use crate::policy::{Order, Policy, Selector};
use crate::score::sums_layout;
use crate::scouts::MOST_SCOUT_ROWS;
use crate::shape::KvShape;

/// Strides of the scratch arrays, words a row, and rows in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScratchLayout {
    pub num_rows: u64,
    /// Tokens of a row. What another plan has left in its lists is no slot beyond it.
    pub capacity: u32,
    /// Also words from a row's slots to what follows them in its lists.
    pub order_stride: u32,
    pub lists_stride: u32,
    pub aside_offset: u32,
    /// Words from a row's slots to where the digits of its keys set aside end.
    pub ends_offset: u32,
    /// 0 where no row takes the long-row dispatches.
    pub histogram_stride: u32,
    /// Words from a row's histogram to its tile counts.
    pub tile_counts_base: u32,
    /// 0 where no row is sorted outside workgroup memory.
    pub sorted_stride: u32,
    /// Rows of one layer, which the sums of keys are made for at a time.
    pub sums_rows: u64,
    /// Words between rows of the sums of keys; 0 where the score needs none.
    pub sums_stride: u32,
    /// Words from a row's first tile to its whole sum.
    pub sums_offset: u32,
    /// 0 where norms are not cached, or need no copies.
    pub copies_stride: u32,
    /// Counts and state of a row's pool; 0 without pools.
    pub pool_counts_stride: u32,
    pub pool_row_words: u32,
}

/// Words of a row's counts of a pool's digits, and from its `PoolRow` to the next.
const POOL_COUNTS_STRIDE: u32 = 320;
const POOL_ROW_WORDS: u32 = 64;
/// Words of a row's histogram of first digits (2048), its other counts and padding.
const HISTOGRAM_WORDS: u32 = 2112;
/// Words of a tile's ends of digits, as in shared/aside.wgsl.
const END_WORDS: u32 = 128;
/// Words that the score notes of a row behind its order keys, as in shared/row_note.wgsl.
const ROW_NOTE_WORDS: u32 = 4;
/// Words of a `RowInfo` of the shaders.
pub(crate) const ROW_INFO_WORDS: u32 = 16;

/// Scratch of one plan. It may be dirty between calls, with one exception that keynorm keeps itself: histograms and
/// counts are left zero. One workspace serves one record at a time; records of one queue follow each other, so they may share it.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub(crate) layout: ScratchLayout,
    pub(crate) order_keys: wgpu::Buffer,
    pub(crate) lists: wgpu::Buffer,
    pub(crate) row_infos: wgpu::Buffer,
    pub(crate) histogram: wgpu::Buffer,
    pub(crate) sorted: wgpu::Buffer,
    pub(crate) sums: wgpu::Buffer,
    pub(crate) norm_copies: wgpu::Buffer,
    pub(crate) pool_counts: wgpu::Buffer,
    pub(crate) pool_rows: wgpu::Buffer,
}

impl ScratchLayout {
    pub fn new(shape: &KvShape, policy: &Policy, num_rows: u64, capabilities: &Capabilities) -> Self {
        let sort_len = capabilities.sort_len;
        let row_len = capabilities.longest_row();
        // Behind the keys there is room for a note of the row.
        let order_stride = (shape.capacity + ROW_NOTE_WORDS).next_multiple_of(64);
        let positional = policy.order == Order::Positional;
        let sorts_outside = policy.selector == Selector::Bitonic && shape.capacity > sort_len;
        let counts_digits = policy.selector != Selector::Bitonic && shape.capacity > row_len;
        let tile_counts_base = if counts_digits { HISTOGRAM_WORDS } else { 0 };
        let num_tiles = shape.capacity.div_ceil(SELECT_TILE);
        // Positions, or a word for each eight slots.
        let staged_len = if positional { order_stride } else { (order_stride / 8).next_multiple_of(64) };
        // At worst every key is set aside. A tile has its own part, and its own ends of digits.
        let aside_offset = order_stride + staged_len;
        let tiles_aside = if counts_digits { num_tiles } else { 0 };
        let ends_offset = aside_offset + tiles_aside * SELECT_TILE;
        let (sums_stride, sums_offset) = sums_layout(shape, policy);
        Self {
            num_rows,
            capacity: shape.capacity,
            order_stride,
            lists_stride: ends_offset + tiles_aside * END_WORDS,
            aside_offset,
            ends_offset,
            histogram_stride: if counts_digits || sorts_outside {
                (tile_counts_base + 4 * num_tiles).next_multiple_of(64)
            } else {
                0
            },
            tile_counts_base,
            sorted_stride: if sorts_outside { shape.capacity.next_power_of_two() } else { 0 },
            sums_rows: if policy.caches_sums() { 0 } else { shape.rows_per_layer().into() },
            sums_stride,
            sums_offset,
            copies_stride: if positional && policy.cached_norms { order_stride } else { 0 },
            pool_counts_stride: if policy.pool.is_some() { POOL_COUNTS_STRIDE } else { 0 },
            pool_row_words: if policy.pool.is_some() { POOL_ROW_WORDS } else { 0 },
        }
    }

    fn sizes(&self) -> [(&'static str, u64); 9] {
        let rows_bytes = |rows: u64, stride: u32| (rows * u64::from(stride) * 4).max(256).next_multiple_of(256);
        let bytes = |stride| rows_bytes(self.num_rows, stride);
        [
            ("keynorm.scratch.order_keys", bytes(self.order_stride)),
            ("keynorm.scratch.lists", bytes(self.lists_stride)),
            ("keynorm.scratch.row_infos", bytes(ROW_INFO_WORDS)),
            ("keynorm.scratch.histogram", bytes(self.histogram_stride)),
            ("keynorm.scratch.sorted", bytes(self.sorted_stride)),
            ("keynorm.scratch.sums", rows_bytes(self.sums_rows, self.sums_stride)),
            ("keynorm.scratch.norm_copies", bytes(self.copies_stride)),
            ("keynorm.scratch.pool_counts", bytes(self.pool_counts_stride)),
            ("keynorm.scratch.pool_rows", bytes(self.pool_row_words)),
        ]
    }

    /// Bytes of a row in the array that has most of it.
    pub fn widest_row(&self) -> u64 {
        let strides =
            [self.lists_stride, self.histogram_stride, self.sorted_stride, self.sums_stride, self.pool_counts_stride];
        4 * u64::from(strides.into_iter().fold(self.order_stride, u32::max))
    }

    /// Rows of which every array fits a binding.
    pub fn max_rows(&self, max_binding_bytes: u64) -> u32 {
        u32::try_from(max_binding_bytes / self.widest_row()).unwrap_or(u32::MAX).max(1)
    }

    /// Rows that are selected from together, one or the heads of a pool, must fit a binding and a grid.
    pub fn check(&self, num_rows: u32, capabilities: &Capabilities) -> Result<(), BuildError> {
        let bytes = u64::from(num_rows) * self.widest_row();
        let grid = u64::from(num_rows) + u64::from(MOST_SCOUT_ROWS);
        for (limit, needed, available) in [
            ("max_storage_buffer_binding_size", bytes, capabilities.max_binding_bytes),
            ("max_compute_workgroups_per_dimension", grid, capabilities.max_workgroups.into()),
        ] {
            if needed > available {
                return Err(BuildError::Limit { limit, needed, available });
            }
        }
        Ok(())
    }

    pub fn total_bytes(&self) -> u64 {
        self.sizes().iter().map(|s| s.1).sum()
    }
}

impl Workspace {
    pub(crate) fn new(kernels: &Kernels, layout: ScratchLayout, checks: &mut Checks) -> Result<Self, BuildError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let mut create = |(label, size): (&'static str, u64)| {
            let available = kernels.capabilities.max_buffer_bytes;
            if size > available {
                return Err(BuildError::Limit { limit: "max_buffer_size", needed: size, available });
            }
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            Ok(checks.guard(&kernels.device, label, || kernels.device.create_buffer(&descriptor)))
        };
        let [order_keys, lists, row_infos, histogram, sorted, sums, norm_copies, pool_counts, pool_rows] =
            layout.sizes();
        Ok(Self {
            layout,
            order_keys: create(order_keys)?,
            lists: create(lists)?,
            row_infos: create(row_infos)?,
            histogram: create(histogram)?,
            sorted: create(sorted)?,
            sums: create(sums)?,
            norm_copies: create(norm_copies)?,
            pool_counts: create(pool_counts)?,
            pool_rows: create(pool_rows)?,
        })
    }

    /// Order keys as the score stage leaves them where it is recorded alone: u32 `[compressed layer * row, stride]`, lower =
    /// kept first. A caller who records only later stages may write keys of its own here: 0 for what must stay (sinks, recent
    /// tokens and what lies before [`CacheState::set_first_writable`](crate::CacheState::set_first_writable) are then the
    /// caller's to protect), up to 0xFFFF_FFFE; not for a plan with cached norms, which are taken or moved by what the score
    /// stage has left. The last four words of a row are the score's own. Usage `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn order_keys(&self) -> &wgpu::Buffer {
        &self.order_keys
    }

    /// Words between rows of [`Workspace::order_keys`]: the capacity and four more, rounded up to a multiple of 64.
    #[must_use]
    pub const fn order_stride(&self) -> u32 {
        self.layout.order_stride
    }

    /// Bytes of all scratch buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layout.total_bytes()
    }
}
