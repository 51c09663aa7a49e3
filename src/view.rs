//! The caller's buffers: keys and values of a layer.

use crate::error::ArgumentError;
use crate::lattice::Lattice;
use crate::shape::{KvShape, Strides, TensorSpec};

/// Keys or values of one layer in the caller's buffer.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Buffer with usage `STORAGE`. It is declared `read_write`; it may be shared with other tensors and strangers.
    pub buffer: &'a wgpu::Buffer,
    /// First byte of (sequence 0, head 0, token 0): a multiple of 4. Multiples of 16 are fastest.
    pub offset_bytes: u64,
    /// Distances between neighbours, elements; of quantised rows bytes, of scores words.
    pub strides: Strides,
}

/// Keys and values of one layer. Slots at or beyond a row's length are never read, whatever they hold.
#[derive(Debug, Clone, Copy)]
pub struct KvView<'a> {
    /// Keys.
    pub keys: TensorView<'a>,
    /// Values.
    pub values: TensorView<'a>,
}

impl<'a> KvView<'a> {
    /// Two buffers of [batch, head, token, dim] (HND), densely packed from byte 0.
    #[must_use]
    pub fn hnd(shape: &KvShape, keys: &'a wgpu::Buffer, values: &'a wgpu::Buffer) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::hnd(shape.num_kv_heads, shape.capacity, spec.row_units()),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values) }
    }

    /// Two buffers of [batch, token, head, dim] (NHD), densely packed from byte 0.
    #[must_use]
    pub fn nhd(shape: &KvShape, keys: &'a wgpu::Buffer, values: &'a wgpu::Buffer) -> Self {
        let view = |buffer, spec: &TensorSpec| TensorView {
            buffer,
            offset_bytes: 0,
            strides: Strides::nhd(shape.num_kv_heads, shape.capacity, spec.row_units()),
        };
        Self { keys: view(keys, &shape.keys), values: view(values, &shape.values) }
    }
}

pub(crate) fn check_tensor(
    argument: &'static str,
    shape: &KvShape,
    spec: &TensorSpec,
    view: &TensorView<'_>,
) -> Result<Lattice, ArgumentError> {
    let lattice = Lattice::new(argument, shape, spec, view.offset_bytes, &view.strides)?;
    if !view.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(ArgumentError::MissingUsage { argument, missing: "STORAGE".to_owned() });
    }
    let (end, buffer_bytes) = (lattice.end(), view.buffer.size());
    if end > buffer_bytes {
        return Err(ArgumentError::OutsideBuffer { argument, end, buffer_bytes });
    }
    Ok(lattice)
}
