//! Paged caches: pools of pages, tables that give them to sequences, and the pages that a compression frees.

use crate::error::{ArgumentError, ReadError};
use crate::kept::read_words;
use crate::lattice::Lattice;
use crate::shape::{KvShape, Strides, TensorSpec};
#[cfg(doc)]
use crate::stages::Stages;
use crate::view::{KvView, TensorView};
use crate::windows::{BoundRange, LayerWindows, Window, WindowLimits};

/// Smallest and largest page, tokens.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 8..=256;
/// Words before the ids of a sequence's freed pages.
pub(crate) const HEADER_WORDS: u32 = 4;

/// The pages of a cache, the same in all of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageShape {
    /// Tokens a page: a multiple of 8 from 8 to 256. The shape's capacity is a multiple of it.
    pub page_size: u32,
    /// Pages of a pool. Ids are below it.
    pub num_pages: u32,
    /// Page 0 is given to no sequence: its id in a table is an error there, and it is neither read nor written.
    pub has_sentinel: bool,
}

/// Which page of the pool holds which tokens: u32 `[sequence, page]`, entry i the page of tokens i·`page_size` on. As many
/// entries count as the longest head of a sequence needs; the others may hold anything.
#[derive(Debug, Clone, Copy)]
pub struct PageTable<'a> {
    /// Buffer with usage `STORAGE`. It is declared `read_write`, and not written.
    pub buffer: &'a wgpu::Buffer,
    /// First byte: a multiple of 4. In a browser a table in its pool's buffer needs a place of its own between multiples of the
    /// storage buffer offset alignment.
    pub offset_bytes: u64,
    /// Entries from one sequence to the next, at least the capacity in pages.
    pub stride: u64,
}

/// Keys and values of one layer in pools of pages. In the strides of the tensors `batch` leads from one page to the next
/// and `token` from one slot of a page to the next.
#[derive(Debug, Clone, Copy)]
pub struct PagedKvView<'a> {
    /// Keys.
    pub keys: TensorView<'a>,
    /// Values.
    pub values: TensorView<'a>,
    /// The table; layers may share one.
    pub table: PageTable<'a>,
}

impl<'a> PagedKvView<'a> {
    /// Two pools of [page, head, slot, dim], densely packed from byte 0.
    #[must_use]
    pub fn hnd(
        shape: &KvShape,
        pages: &PageShape,
        keys: &'a wgpu::Buffer,
        values: &'a wgpu::Buffer,
        table: PageTable<'a>,
    ) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::hnd(shape.num_kv_heads, pages.page_size, spec.row_units()),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values), table }
    }

    /// Two pools of [page, slot, head, dim], densely packed from byte 0.
    #[must_use]
    pub fn nhd(
        shape: &KvShape,
        pages: &PageShape,
        keys: &'a wgpu::Buffer,
        values: &'a wgpu::Buffer,
        table: PageTable<'a>,
    ) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::nhd(shape.num_kv_heads, pages.page_size, spec.row_units()),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values), table }
    }

    /// One pool of [page, 2, head, slot, dim], the keys of a page before its values, densely packed from byte 0. Keys and
    /// values have one dtype and head_dim.
    #[must_use]
    pub fn one_pool(shape: &KvShape, pages: &PageShape, pool: &'a wgpu::Buffer, table: PageTable<'a>) -> Self {
        let one = Strides::hnd(shape.num_kv_heads, pages.page_size, shape.keys.row_units());
        let strides = Strides { batch: 2 * one.batch, ..one };
        let values_offset = one.batch * u64::from(shape.keys.dtype.size_bytes());
        let view = |offset_bytes| TensorView { buffer: pool, offset_bytes, strides };
        Self { keys: view(0), values: view(values_offset), table }
    }
}

/// What is bound: views of all layers, with tables where the cache is paged.
pub(crate) struct Views<'a> {
    pub layers: Vec<KvView<'a>>,
    /// Empty unless the policy takes scores.
    pub scores: Vec<TensorView<'a>>,
    pub tables: Vec<PageTable<'a>>,
    pub pages: Option<PageShape>,
}

impl<'a> Views<'a> {
    pub(crate) fn strided(views: &[KvView<'a>], scores: &[TensorView<'a>]) -> Self {
        Self { layers: views.to_vec(), scores: scores.to_vec(), tables: Vec::new(), pages: None }
    }

    pub(crate) fn paged(pages: &PageShape, views: &[PagedKvView<'a>], scores: &[TensorView<'a>]) -> Self {
        let layers = views.iter().map(|v| KvView { keys: v.keys, values: v.values }).collect();
        let tables = views.iter().map(|v| v.table).collect();
        Self { layers, scores: scores.to_vec(), tables, pages: Some(*pages) }
    }
}

/// The pages that the last compression has freed, on the GPU.
#[derive(Debug, Clone)]
pub struct FreedPages {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) stride: u32,
    pub(crate) num_layers: u32,
    pub(crate) batch_size: u32,
}

/// What a compression has left of a sequence's pages in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SequencePages {
    /// Entries of the table that are still in use: those of the longest head.
    pub num_kept: u32,
    /// Tokens of the longest head.
    pub longest: u32,
    /// Ids of the pages after them, in the order of the table, up to where this layer's longest head ended before: where layers
    /// share a table, others may still use them.
    pub freed: Vec<u32>,
}

impl FreedPages {
    /// u32 `[layer, sequence, stride]`: number of pages freed, number kept, tokens of the longest head, pages when the table was
    /// last checked; then the ids of the freed pages. Written by [`Stages::COMPACT`] for compressed layers. Usage
    /// `STORAGE | COPY_SRC | COPY_DST`.
    #[must_use]
    pub const fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Words from one sequence to the next: 4 + the capacity in pages.
    #[must_use]
    pub const fn stride(&self) -> u32 {
        self.stride
    }

    /// Reads everything back, after what has been submitted so far: one list a layer, one entry a sequence.
    ///
    /// # Errors
    /// As [`read_words`](crate::kept::read_words).
    pub async fn read(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Vec<Vec<SequencePages>>, ReadError> {
        let words = read_words(device, queue, &self.buffer).await?;
        let stride = self.stride as usize;
        let sequence = |words: &[u32]| SequencePages {
            num_kept: words[1],
            longest: words[2],
            freed: words[HEADER_WORDS as usize..].iter().take(words[0] as usize).copied().collect(),
        };
        let used = (self.num_layers * self.batch_size) as usize * stride;
        let layers = words[..used].chunks_exact(self.batch_size as usize * stride);
        Ok(layers.map(|layer| layer.chunks_exact(stride).map(sequence).collect()).collect())
    }
}

/// Checks what does not depend on buffers.
pub(crate) fn check_pages(pages: &PageShape, shape: &KvShape) -> Result<(), ArgumentError> {
    let page_size = pages.page_size;
    if !PAGE_SIZES.contains(&page_size) || !page_size.is_multiple_of(8) {
        return Err(ArgumentError::PageSize { got: page_size });
    }
    if !shape.capacity.is_multiple_of(page_size) {
        return Err(ArgumentError::PartialPage { capacity: shape.capacity, page_size });
    }
    if pages.num_pages == 0 {
        return Err(ArgumentError::ZeroDimension { argument: "num_pages" });
    }
    Ok(())
}

/// The shape of a pool: pages for sequences, slots for tokens.
pub(crate) fn pool_shape(pages: &PageShape, shape: &KvShape) -> KvShape {
    KvShape { batch_size: pages.num_pages, capacity: pages.page_size, ..*shape }
}

/// The entries of a table as bytes of its buffer.
pub(crate) fn check_table(table: &PageTable<'_>, pages: &PageShape, shape: &KvShape) -> Result<Lattice, ArgumentError> {
    let argument = "table";
    if !table.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(ArgumentError::MissingUsage { argument, missing: "STORAGE".to_owned() });
    }
    // An entry is a row of one f32: its bytes, not its value, are what counts here.
    let entries = KvShape { num_kv_heads: 1, capacity: shape.capacity / pages.page_size, ..*shape };
    let spec = TensorSpec::new(crate::shape::Dtype::F32, 1);
    let strides = Strides { batch: table.stride, head: 0, token: 1 };
    let lattice = Lattice::new(argument, &entries, &spec, table.offset_bytes, &strides)?;
    let (end, buffer_bytes) = (lattice.end(), table.buffer.size());
    if end > buffer_bytes {
        return Err(ArgumentError::OutsideBuffer { argument, end, buffer_bytes });
    }
    Ok(lattice)
}

/// Pools are bound whole, for as many rows as scratch allows.
pub(crate) fn pool_windows(
    (keys, values): (&Lattice, &Lattice),
    same_buffer: bool,
    num_rows: u32,
    limits: WindowLimits,
) -> Result<LayerWindows, ArgumentError> {
    let ranges = [keys, values].map(|l| BoundRange::aligned((l.offset, l.end()), limits));
    let joined = same_buffer && ranges[0].intersects(ranges[1]);
    let both = (keys.offset.min(values.offset), keys.end().max(values.end()));
    let [keys_range, values_range] = if joined { [BoundRange::aligned(both, limits); 2] } else { ranges };
    for (argument, range) in [("keys", keys_range), ("values", values_range)] {
        if range.size > limits.max_binding_bytes {
            let limit = limits.max_binding_bytes;
            return Err(ArgumentError::PoolExceedsBinding { argument, pool_bytes: range.size, limit });
        }
    }
    let step = limits.max_rows as usize;
    let window = |first_row: u32| Window {
        first_row,
        num_rows: limits.max_rows.min(num_rows - first_row),
        keys: keys_range,
        values: values_range,
    };
    Ok(LayerWindows::Rows { windows: (0..num_rows).step_by(step).map(window).collect(), joined })
}
