//! Tensors described axis by axis, as DLPack does, so that a layout that cannot be served is refused by name.

use crate::error::ArgumentError;
use crate::shape::{Strides, TensorSpec};
use crate::view::TensorView;

/// What an axis of a tensor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AxisKind {
    /// Sequences; pages of a paged cache.
    Batch,
    /// KV heads.
    Head,
    /// Tokens; slots of a page.
    Token,
    /// Elements of a token. A tensor may split them over several axes.
    Dim,
}

/// One axis of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axis {
    /// What it counts.
    pub kind: AxisKind,
    /// Its length.
    pub len: u64,
    /// From one index to the next, elements.
    pub stride: u64,
}

impl Axis {
    /// An axis of `len` indices, `stride` elements apart.
    #[must_use]
    pub const fn new(kind: AxisKind, len: u64, stride: u64) -> Self {
        Self { kind, len, stride }
    }
}

impl<'a> TensorView<'a> {
    /// A view from shape and strides as a tensor library holds them (`DLPack`'s `shape`, `strides` and `byte_offset`), each
    /// axis with what it counts, in any order. An axis may be missing where its length is 1. Of batch, head and token axes only
    /// strides are taken: how far they reach is the shape's to say when the view is bound. `argument` is the name in errors:
    /// `"keys"` or `"values"`.
    ///
    /// # Errors
    /// The layouts that no kernel here serves, since rows are moved whole, as 32-bit words:
    /// [`ArgumentError::InterleavedTokens`] (vLLM's keys), [`ArgumentError::Transposed`] (vLLM's values, llama.cpp's
    /// without flash attention), [`ArgumentError::HeadDimStride`]; quantised rows, whose strides are in bytes;
    /// [`ArgumentError::Axes`] and [`ArgumentError::AxisLength`] for what is no tensor of `spec`.
    ///
    /// # Example
    /// ```no_run
    /// use keynorm::{ArgumentError, Axis, AxisKind, Dtype, TensorSpec, TensorView};
    /// # fn f(buffer: &wgpu::Buffer) {
    /// let spec = TensorSpec::new(Dtype::F16, 128);
    /// // [page, head, dim / 8, slot, 8] of vLLM: 16-byte groups of 16 tokens lie side by side.
    /// let axes = [
    ///     Axis::new(AxisKind::Batch, 1000, 8 * 128 * 16),
    ///     Axis::new(AxisKind::Head, 8, 128 * 16),
    ///     Axis::new(AxisKind::Dim, 16, 8 * 16),
    ///     Axis::new(AxisKind::Token, 16, 8),
    ///     Axis::new(AxisKind::Dim, 8, 1),
    /// ];
    /// let refused = TensorView::from_axes("keys", buffer, 0, &spec, &axes);
    /// assert!(matches!(refused, Err(ArgumentError::InterleavedTokens { group: 8, .. })));
    /// # }
    /// ```
    pub fn from_axes(
        argument: &'static str,
        buffer: &'a wgpu::Buffer,
        offset_bytes: u64,
        spec: &TensorSpec,
        axes: &[Axis],
    ) -> Result<Self, ArgumentError> {
        if spec.dtype.is_quantised() {
            return Err(ArgumentError::Unsupported { what: "quantised rows in TensorView::from_axes" });
        }
        let token = single(argument, axes, AxisKind::Token)?;
        check_dims(argument, spec, axes, token)?;
        let stride = |axis: Option<Axis>| axis.map_or(0, |a| a.stride);
        Ok(Self {
            buffer,
            offset_bytes,
            strides: Strides {
                batch: stride(single(argument, axes, AxisKind::Batch)?),
                head: stride(single(argument, axes, AxisKind::Head)?),
                token: stride(token),
            },
        })
    }
}

impl AxisKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Batch => "Batch",
            Self::Head => "Head",
            Self::Token => "Token",
            Self::Dim => "Dim",
        }
    }
}

/// The axis of a kind, if there is one.
fn single(argument: &'static str, axes: &[Axis], kind: AxisKind) -> Result<Option<Axis>, ArgumentError> {
    let mut of_kind = axes.iter().filter(|a| a.kind == kind);
    let got = of_kind.clone().count();
    if got > 1 {
        return Err(ArgumentError::Axes { argument, axis: kind.name(), got, expected: "at most one" });
    }
    Ok(of_kind.next().copied())
}

/// The elements of a token must be contiguous.
fn check_dims(
    argument: &'static str,
    spec: &TensorSpec,
    axes: &[Axis],
    token: Option<Axis>,
) -> Result<(), ArgumentError> {
    let axis = AxisKind::Dim.name();
    let mut dims: Vec<Axis> = axes.iter().filter(|a| a.kind == AxisKind::Dim).copied().collect();
    if dims.is_empty() {
        return Err(ArgumentError::Axes { argument, axis, got: 0, expected: "at least one" });
    }
    let product = dims.iter().try_fold(1_u64, |p, d| p.checked_mul(d.len)).unwrap_or(u64::MAX);
    if product != u64::from(spec.head_dim) {
        return Err(ArgumentError::AxisLength { argument, axis, got: product, expected: spec.head_dim.into() });
    }
    dims.retain(|d| d.len > 1);
    dims.sort_by_key(|d| d.stride);
    let mut contiguous = 1;
    for dim in dims {
        if dim.stride == contiguous {
            contiguous *= dim.len;
        } else if contiguous > 1 {
            return Err(ArgumentError::InterleavedTokens { argument, group: contiguous, group_stride: dim.stride });
        } else if token.is_some_and(|t| t.stride == 1 && t.len > 1) {
            return Err(ArgumentError::Transposed { argument, dim_stride: dim.stride });
        } else {
            return Err(ArgumentError::HeadDimStride { argument, dim_stride: dim.stride });
        }
    }
    Ok(())
}
