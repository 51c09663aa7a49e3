//! Scratch memory of a plan: order keys, lists, histograms. Never of the size of the cache.

use crate::error::BuildError;
use crate::kernel::{Checks, Kernels};

/// Strides of the scratch arrays, words a row, and rows in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScratchLayout {
    pub num_rows: u64,
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
    /// kept first. A caller who records only later stages may write keys of its own here: 0 for what must stay, up to
    /// 0xFFFF_FFFE; not for a plan with cached norms, which move by what the score stage has left. The last four words of a row are
    /// the score's own.
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
