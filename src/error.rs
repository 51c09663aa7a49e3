//! Typed errors: of what the caller passed, of what the device could not give, and of reading back.

use thiserror::Error;

/// An argument that is refused. Nothing has been recorded or written when one is returned.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A dimension is zero. (A length of 0 tokens is valid and does nothing.)
    #[error("{argument} is 0, expected at least 1")]
    ZeroDimension {
        /// Name of the argument.
        argument: &'static str,
    },
    /// A head dimension outside 16..=512 or no multiple of 8.
    #[error("{argument} is {got} elements, expected a multiple of 8 from 16 to 512")]
    HeadDim {
        /// Name of the argument.
        argument: &'static str,
        /// Given elements.
        got: u32,
    },
    /// A head dimension that ends within a quantised block, or with f8 within 16 bytes.
    #[error("{argument} is {got} elements, expected a multiple of {block_len}: its dtype has as many in a block")]
    PartialBlock {
        /// Name of the argument.
        argument: &'static str,
        /// Given elements.
        got: u32,
        /// Elements of a block.
        block_len: u32,
    },
    /// Quantised rows that share words.
    #[error(
        "rows of {argument} take {row_bytes} bytes, no multiple of 4, so that neighbours share a 32-bit word, by which rows \
         are moved; pad head_dim to {padded} elements (a block of zeros leaves norms and attention as they are)"
    )]
    RowBytes {
        /// Name of the argument.
        argument: &'static str,
        /// Bytes of a row.
        row_bytes: u32,
        /// Elements of the next length that serves.
        padded: u32,
    },
    /// A count above its limit.
    #[error("{argument} is {got}, expected at most {limit}")]
    TooLarge {
        /// Name of the argument.
        argument: &'static str,
        /// Given count.
        got: u64,
        /// Largest count allowed.
        limit: u64,
    },
    /// A keep ratio that is NaN or outside 0..=1.
    #[error("keep_ratio is {got}, expected a number from 0 to 1 (the share of tokens that is kept)")]
    KeepRatio {
        /// Given ratio.
        got: f64,
    },
    /// A keep ratio below another one: ratios descend, or their mean is to be less than the lowest.
    #[error("{argument} is {got}, expected at least {least}")]
    KeepRatioTooLow {
        /// Name of the argument.
        argument: &'static str,
        /// Given ratio.
        got: f64,
        /// The ratio before it, or the lowest.
        least: f64,
    },
    /// A share of the recent window that is NaN or outside 0..=1.
    #[error("recent_share is {got}, expected a number from 0 to 1 (the share of the row that the window may take)")]
    RecentShare {
        /// Given share.
        got: f64,
    },
    /// A rotated part of a key that does not fit it.
    #[error("rotary_dim is {got} elements, expected a multiple of {multiple} from {multiple} to {limit}")]
    RotaryDim {
        /// Given elements.
        got: u32,
        /// What it must be a multiple of.
        multiple: u32,
        /// Elements of a key.
        limit: u32,
    },
    /// A base, factor or frequency of a rotation that is not a positive number.
    #[error("{argument} is {got}, expected a positive number")]
    Frequency {
        /// Name of the argument.
        argument: &'static str,
        /// Given number.
        got: f64,
    },
    /// A norm limit that is NaN or negative.
    #[error("max_norm is {got}, expected a number of at least 0")]
    MaxNorm {
        /// Given limit.
        got: f32,
    },
    /// Two choices that do not go together.
    #[error("{what} is not supported")]
    Unsupported {
        /// The combination.
        what: &'static str,
    },
    /// A range that is empty the wrong way round, or shares positions with another.
    #[error("{argument}[{index}] is {start}..{end}, expected a range that ends after its start and overlaps no other")]
    Segment {
        /// Name of the argument.
        argument: &'static str,
        /// Entry of the slice.
        index: usize,
        /// First position.
        start: u32,
        /// First position after it.
        end: u32,
    },
    /// A budget of fewer tokens than the policy protects.
    #[error(
        "keep_tokens is {keep_tokens}, below sinks + recent = {protected} tokens; raise keep_tokens or protect fewer"
    )]
    KeepTokensBelowProtected {
        /// Given budget, tokens a row.
        keep_tokens: u32,
        /// Protected tokens.
        protected: u64,
    },
    /// A layer index that the shape does not have.
    #[error("{argument} names layer {layer}, expected an index below num_layers = {num_layers}")]
    LayerOutOfRange {
        /// Name of the argument.
        argument: &'static str,
        /// Given layer.
        layer: u32,
        /// Layers of the shape.
        num_layers: u32,
    },
    /// An index outside its range.
    #[error("{argument} is {got}, expected an index below {limit}")]
    IndexOutOfRange {
        /// Name of the argument.
        argument: &'static str,
        /// Given index.
        got: u64,
        /// First index that is too large.
        limit: u64,
    },
    /// A slice of the wrong length.
    #[error("{argument} has {got} entries, expected {expected}")]
    WrongCount {
        /// Name of the argument.
        argument: &'static str,
        /// Given entries.
        got: usize,
        /// Entries expected.
        expected: usize,
    },
    /// A byte offset or stride that is no multiple of 4.
    #[error("{argument} is {got} bytes, expected a multiple of 4")]
    Misaligned {
        /// Name of the argument.
        argument: &'static str,
        /// Given bytes.
        got: u64,
    },
    /// A range that ends beyond its buffer.
    #[error("{argument} ends at byte {end}, but its buffer has {buffer_bytes} bytes")]
    OutsideBuffer {
        /// Name of the argument.
        argument: &'static str,
        /// End of the range, bytes.
        end: u64,
        /// Size of the buffer, bytes.
        buffer_bytes: u64,
    },
    /// A buffer without a usage flag that is needed.
    #[error("the buffer of {argument} lacks usage {missing}; add it where the buffer is created")]
    MissingUsage {
        /// Name of the argument.
        argument: &'static str,
        /// Missing flags, by name.
        missing: String,
    },
    /// Strides under which two rows or tokens of one tensor share bytes.
    #[error(
        "strides of {argument} make its rows overlap: {dimension} stride is {got}, expected at least {expected} (elements; of \
         quantised rows bytes, of scores words)"
    )]
    OverlappingRows {
        /// Name of the argument.
        argument: &'static str,
        /// Dimension whose stride is too small.
        dimension: &'static str,
        /// Given stride.
        got: u64,
        /// Smallest stride that keeps rows apart.
        expected: u64,
    },
    /// Two arguments that share bytes.
    #[error("{first} and {second} overlap in one buffer; give them disjoint elements")]
    Overlap {
        /// First argument.
        first: &'static str,
        /// Second argument.
        second: &'static str,
    },
    /// A length above the capacity of its row.
    #[error("{argument}[{index}] is {got} tokens, more than the capacity of {capacity}")]
    LengthOverCapacity {
        /// Name of the argument.
        argument: &'static str,
        /// Entry of the slice.
        index: usize,
        /// Given length, tokens.
        got: u32,
        /// Capacity of a row, tokens.
        capacity: u32,
    },
    /// The elements of a token lie in groups, with the same groups of other tokens between them, as vLLM holds its keys.
    #[error(
        "{argument}: head_dim lies in groups of {group} elements, {group_stride} elements apart, so that tokens \
         interleave; a row must be contiguous to move as a whole: bind before the host interleaves it, or let the cache \
         hold [page, head, slot, dim]"
    )]
    InterleavedTokens {
        /// Name of the argument.
        argument: &'static str,
        /// Contiguous elements of a group.
        group: u64,
        /// From one group of a token to its next, elements.
        group_stride: u64,
    },
    /// The tokens of a row are contiguous, and the elements of a token are not: transposed values.
    #[error(
        "{argument} is transposed: its tokens are contiguous and head_dim has stride {dim_stride} elements; a row must \
         be contiguous to move as a whole: hold the tensor with head_dim innermost (in llama.cpp, with flash attention)"
    )]
    Transposed {
        /// Name of the argument.
        argument: &'static str,
        /// Given stride of head_dim, elements.
        dim_stride: u64,
    },
    /// The elements of a token are not contiguous.
    #[error(
        "{argument}: head_dim has stride {dim_stride} elements, expected 1; hold the tensor with head_dim innermost and \
         its elements side by side"
    )]
    HeadDimStride {
        /// Name of the argument.
        argument: &'static str,
        /// Given stride of head_dim, elements.
        dim_stride: u64,
    },
    /// Axes that do not make a tensor of tokens.
    #[error("{argument} has {got} axes of kind {axis}, expected {expected}")]
    Axes {
        /// Name of the argument.
        argument: &'static str,
        /// Kind of the axis.
        axis: &'static str,
        /// Axes of that kind.
        got: usize,
        /// Axes expected.
        expected: &'static str,
    },
    /// An axis of another length than the shape has.
    #[error("{argument} has {got} elements along {axis}, expected {expected}")]
    AxisLength {
        /// Name of the argument.
        argument: &'static str,
        /// Kind of the axis.
        axis: &'static str,
        /// Given length.
        got: u64,
        /// Length expected.
        expected: u64,
    },
    /// A page size that is not served.
    #[error("page_size is {got} tokens, expected a multiple of 8 from 8 to 256")]
    PageSize {
        /// Given tokens.
        got: u32,
    },
    /// A capacity that ends within a page.
    #[error("capacity is {capacity} tokens, no multiple of page_size = {page_size}; round it up to whole pages")]
    PartialPage {
        /// Given capacity, tokens.
        capacity: u32,
        /// Tokens a page.
        page_size: u32,
    },
    /// A pool of pages that is larger than a storage binding of the device.
    #[error(
        "the pool of {argument} spans {pool_bytes} bytes, more than max_storage_buffer_binding_size = {limit}; a page may \
         lie anywhere in its pool, which is therefore bound whole: give each layer, or keys and values, pools of their \
         own, or request a device with a higher limit"
    )]
    PoolExceedsBinding {
        /// Name of the argument.
        argument: &'static str,
        /// Bytes from the first to the last page.
        pool_bytes: u64,
        /// Limit of the device, bytes.
        limit: u64,
    },
    /// One row that is larger than a storage binding of the device, where it must be bound whole.
    #[error(
        "one row of {argument} spans {row_bytes} bytes, more than max_storage_buffer_binding_size = {limit}; only rows that are \
         scored by key norm go by bands, and none that are rotated: use a layout whose rows are contiguous, or a shorter capacity"
    )]
    RowExceedsBinding {
        /// Name of the argument.
        argument: &'static str,
        /// Bytes of the row from an aligned address on; of keys and values that meet between aligned addresses those of both.
        row_bytes: u64,
        /// Limit of the device, bytes.
        limit: u64,
    },
    /// An address that does not fit the arithmetic (u64 bytes, u32 words within a binding).
    #[error("addresses of {argument} overflow; its strides or offset are too large")]
    AddressOverflow {
        /// Name of the argument.
        argument: &'static str,
    },
    /// An object made for another device.
    #[error("{argument} belongs to another device than the compressor; make both on one device")]
    WrongDevice {
        /// Name of the argument.
        argument: &'static str,
    },
    /// An object made for another plan.
    #[error("{argument} was made for another plan; make it with this plan")]
    WrongPlan {
        /// Name of the argument.
        argument: &'static str,
    },
}

/// Why pipelines, plans or bindings could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An argument is refused.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A limit of the device is below what is needed.
    #[error("device limit {limit} is {available}, but {needed} is needed; request a device with a higher limit")]
    Limit {
        /// Name of the limit, as in [`wgpu::Limits`].
        limit: &'static str,
        /// Value needed.
        needed: u64,
        /// Value of the device.
        available: u64,
    },
    /// A forced feature that the device lacks.
    #[error(
        "feature {feature} is forced on, but the device lacks it; request it or leave the choice to Options::default()"
    )]
    MissingFeature {
        /// Name of the feature.
        feature: &'static str,
    },
    /// The device refused a shader, pipeline, buffer or bind group: a defect of this crate or of the driver; or, of a
    /// read-back, a buffer of another device or one that is mapped or destroyed.
    #[error("the device refused {label}: {message}")]
    Device {
        /// Label of the object.
        label: String,
        /// Message of wgpu.
        message: String,
    },
    /// The device is out of memory.
    #[error("out of memory while creating {label}")]
    OutOfMemory {
        /// Label of the object.
        label: String,
    },
}

/// Why results could not be read back by the convenience layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// An argument is refused.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The device refused the copy, or has no memory for it.
    #[error(transparent)]
    Device(#[from] BuildError),
    /// Waiting for the device failed.
    #[error("waiting for the device failed: {0}")]
    Poll(String),
    /// Mapping the read-back buffer failed.
    #[error("mapping the read-back buffer failed: {0}")]
    Map(String),
}
