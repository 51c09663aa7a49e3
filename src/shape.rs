//! Shapes and strides of a cache, and every check on them. No GPU here.

use crate::error::ArgumentError;

/// Most tokens a row can hold.
pub const MAX_CAPACITY: u32 = 1 << 20;
/// Largest head dimension, elements.
pub const MAX_HEAD_DIM: u32 = 512;

/// Most rows of all layers: what a grid of workgroups of 256 can count appended tokens of.
const MAX_ROWS: u64 = 65_535 * 256;

/// Element type of keys or values. No device feature is needed for any of them.
///
/// # Example
/// ```
/// use keynorm::{Dtype, Strides, TensorSpec};
/// // Keys of llama.cpp as q8_0: [token, head, dim], a row of four blocks.
/// let spec = TensorSpec::new(Dtype::Q8_0, 128);
/// assert_eq!(spec.row_bytes(), 136);
/// let strides = Strides::nhd(8, 4096, spec.row_units());
/// assert_eq!(strides.token, 8 * 136); // bytes, since the rows are quantised
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16, two to a 32-bit word.
    F16,
    /// bfloat16, two to a 32-bit word. Magnitudes below 2⁻⁶³ count as zero in the norm; they are moved unchanged.
    Bf16,
    /// OCP FP8 E4M3 (`float8_e4m3fn`: no infinity; not `fnuz`), four to a 32-bit word. A scale for a tensor or a head leaves
    /// the order of a row's keys alone, so that none is asked for; what compares norms with a limit or across heads
    /// ([`Budget::MaxNorm`](crate::Budget::MaxNorm), [`Pool`](crate::Pool)) sees them without it. A scale for each token is not
    /// served.
    F8E4M3,
    /// OCP FP8 E5M2, likewise: the upper byte of an f16.
    F8E5M2,
    /// ggml's `q8_0`: blocks of 32 elements in 34 bytes, an f16 scale and 32 signed bytes. Strides are in bytes. Rows are
    /// moved unchanged, never requantised.
    Q8_0,
    /// ggml's `q4_0`: blocks of 32 elements in 18 bytes, an f16 scale and 32 nibbles that count from −8. Strides are in
    /// bytes.
    Q4_0,
    /// An f32 scale for each row, then a signed byte an element, as in ONNX Runtime's WebGPU cache: `4 + head_dim` bytes.
    /// Strides are in bytes. Scales in a tensor of their own are not served. Scales below 2⁻⁶³ count as zero in the norm.
    I8Scaled,
}

/// Elements of a block of quantised rows.
pub(crate) const BLOCK_LEN: u32 = 32;

impl Dtype {
    /// Bytes of what strides count: an element, of quantised rows a byte.
    #[must_use]
    pub const fn size_bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::Q8_0 | Self::Q4_0 | Self::I8Scaled => 1,
        }
    }

    /// Elements have integers and a scale that several share.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0 | Self::I8Scaled)
    }

    /// Elements are bytes that stand for themselves.
    pub(crate) const fn is_f8(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2)
    }

    /// Elements that a row's length is a multiple of, because they share a block or a 16-byte chunk.
    const fn block_len(self) -> u32 {
        match self {
            Self::F8E4M3 | Self::F8E5M2 => 16,
            Self::Q8_0 | Self::Q4_0 => BLOCK_LEN,
            _ => 1,
        }
    }
}

/// Element type and head dimension of keys or of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: Dtype,
    /// Elements a token: a multiple of 8 from 16 to 512; of 16 for f8, of 64 for q8_0 and q4_0.
    pub head_dim: u32,
}

impl TensorSpec {
    /// A specification of `head_dim` elements of `dtype` a token.
    #[must_use]
    pub const fn new(dtype: Dtype, head_dim: u32) -> Self {
        Self { dtype, head_dim }
    }

    /// Bytes of one token's row.
    #[must_use]
    pub const fn row_bytes(&self) -> u32 {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 | Dtype::F8E5M2 => {
                self.head_dim * self.dtype.size_bytes()
            }
            Dtype::Q8_0 => self.head_dim / BLOCK_LEN * 34,
            Dtype::Q4_0 => self.head_dim / BLOCK_LEN * 18,
            Dtype::I8Scaled => self.head_dim + 4,
        }
    }

    /// One token's row in what strides count: elements, of quantised rows bytes. Takes the place of `head_dim` in
    /// [`Strides::hnd`] and [`Strides::nhd`].
    #[must_use]
    pub const fn row_units(&self) -> u32 {
        self.row_bytes() / self.dtype.size_bytes()
    }

    /// 16-byte chunks of one token's row; the last may be a part.
    #[must_use]
    pub const fn chunks(&self) -> u32 {
        self.row_bytes().div_ceil(16)
    }

    /// What a lane sums at a time in the norm: 16-byte chunks, of quantised rows blocks of 32 elements.
    #[must_use]
    pub const fn norm_chunks(&self) -> u32 {
        if self.dtype.is_quantised() { self.head_dim.div_ceil(BLOCK_LEN) } else { self.chunks() }
    }

    /// Lanes that share a token in the norm: the next power of two of [`TensorSpec::norm_chunks`], from 2 to 32. Part of
    /// the definition of the norm.
    #[must_use]
    pub const fn norm_lanes(&self) -> u32 {
        let lanes = lanes_of(self.norm_chunks());
        if lanes < 2 { 2 } else { lanes }
    }

    fn check_row(&self, argument: &'static str) -> Result<(), ArgumentError> {
        let block_len = self.dtype.block_len();
        if !self.head_dim.is_multiple_of(block_len) {
            return Err(ArgumentError::PartialBlock { argument, got: self.head_dim, block_len });
        }
        if !self.row_bytes().is_multiple_of(4) {
            let padded = (self.head_dim / block_len + 1) * block_len;
            return Err(ArgumentError::RowBytes { argument, row_bytes: self.row_bytes(), padded });
        }
        Ok(())
    }
}

const fn lanes_of(chunks: u32) -> u32 {
    let lanes = chunks.next_power_of_two();
    if lanes > 32 { 32 } else { lanes }
}

/// Geometry of the caches that one plan serves. A *row* is one (sequence, KV head) of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Layers that are compressed by one call; 1 for a single layer.
    pub num_layers: u32,
    /// Sequences.
    pub batch_size: u32,
    /// KV heads a sequence.
    pub num_kv_heads: u32,
    /// Tokens that a row can hold, at most 1,048,576. Slots at or beyond a row's length are never read.
    pub capacity: u32,
    /// Keys.
    pub keys: TensorSpec,
    /// Values.
    pub values: TensorSpec,
}

impl KvShape {
    /// Rows of one layer: `batch_size * num_kv_heads`.
    #[must_use]
    pub const fn rows_per_layer(&self) -> u32 {
        self.batch_size * self.num_kv_heads
    }

    /// Checks every dimension.
    ///
    /// # Errors
    /// [`ArgumentError`] with the name of the dimension.
    pub fn check(&self) -> Result<(), ArgumentError> {
        for (argument, got) in [
            ("num_layers", self.num_layers),
            ("batch_size", self.batch_size),
            ("num_kv_heads", self.num_kv_heads),
            ("capacity", self.capacity),
            ("keys.head_dim", self.keys.head_dim),
            ("values.head_dim", self.values.head_dim),
        ] {
            if got == 0 {
                return Err(ArgumentError::ZeroDimension { argument });
            }
        }
        for (argument, got) in [("keys.head_dim", self.keys.head_dim), ("values.head_dim", self.values.head_dim)] {
            if got % 8 != 0 || !(16..=MAX_HEAD_DIM).contains(&got) {
                return Err(ArgumentError::HeadDim { argument, got });
            }
        }
        self.keys.check_row("keys.head_dim")?;
        self.values.check_row("values.head_dim")?;
        let too_large = |argument, got: u64, limit: u64| {
            if got > limit { Err(ArgumentError::TooLarge { argument, got, limit }) } else { Ok(()) }
        };
        too_large("capacity", self.capacity.into(), MAX_CAPACITY.into())?;
        let rows = u64::from(self.batch_size).checked_mul(self.num_kv_heads.into());
        let all_rows = rows.and_then(|r| r.checked_mul(self.num_layers.into())).unwrap_or(u64::MAX);
        too_large("num_layers * batch_size * num_kv_heads", all_rows, MAX_ROWS)?;
        let slots = all_rows.saturating_mul(self.capacity.into());
        too_large("num_layers * batch_size * num_kv_heads * capacity", slots, (1 << 32) - 1)
    }
}

/// Distances between neighbours, in elements; of quantised rows in bytes. The elements of one token's row are contiguous. Each
/// distance is a multiple of 4 bytes, and in some order each is no less than what the smaller ones span, so that no two rows
/// overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Strides {
    /// From one sequence to the next; of a paged cache from one page to the next.
    pub batch: u64,
    /// From one KV head to the next.
    pub head: u64,
    /// From one token to the next; of a paged cache from one slot of a page to the next.
    pub token: u64,
}

impl Strides {
    /// Strides of [batch, head, token, dim] (HND), densely packed.
    #[must_use]
    pub fn hnd(num_kv_heads: u32, capacity: u32, head_dim: u32) -> Self {
        let token = u64::from(head_dim);
        let head = token * u64::from(capacity);
        Self { batch: head * u64::from(num_kv_heads), head, token }
    }

    /// Strides of [batch, token, head, dim] (NHD), densely packed.
    #[must_use]
    pub fn nhd(num_kv_heads: u32, capacity: u32, head_dim: u32) -> Self {
        let head = u64::from(head_dim);
        let token = head * u64::from(num_kv_heads);
        Self { batch: token * u64::from(capacity), head, token }
    }
}
