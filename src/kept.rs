//! Convenience for tests and tools: submit, wait, read back what was kept. The recording core never blocks; this does.

use crate::bound::Bound;
use crate::error::{ArgumentError, ReadError};
use crate::kernel::Checks;
use crate::state::{CacheState, Status};

/// What a cache holds after a compression.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// One entry a layer of the shape.
    pub layers: Vec<KeptLayer>,
}

/// One layer of [`Kept`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptLayer {
    /// Sticky status bits.
    pub status: Status,
    /// Tokens seen by each sequence.
    pub num_seen: Vec<u32>,
    /// Original positions of the tokens in the cache, slot by slot, one list a row; the length of a list is the row's.
    pub positions: Vec<Vec<u32>>,
}

impl Bound {
    /// Records the whole compression into passes of its own, submits it, waits, and reads back what was kept.
    ///
    /// # Errors
    /// As [`Bound::encode`]; another device than the plan's; [`ReadError::Device`] where the device refuses the work, as it does
    /// where a buffer is mapped or destroyed; as [`read_words`].
    pub async fn compress(&self, device: &wgpu::Device, queue: &wgpu::Queue, max_len: u32) -> Result<Kept, ReadError> {
        if self.plan.kernels.device != *device {
            return Err(ArgumentError::WrongDevice { argument: "device" }.into());
        }
        let mut checks = Checks::default();
        let encoded = checks.guard(device, "keynorm.compress", || {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.encode(&mut encoder, max_len)?;
            queue.submit([encoder.finish()]);
            Ok::<_, ArgumentError>(())
        });
        checks.finish_async().await?;
        encoded?;
        self.state().read(device, queue).await
    }
}

impl CacheState {
    /// Reads the state back, after everything submitted so far.
    ///
    /// # Errors
    /// As [`read_words`].
    pub async fn read(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Kept, ReadError> {
        let meta = read_words(device, queue, self.meta()).await?;
        let status = read_words(device, queue, self.status()).await?;
        let positions = read_words(device, queue, self.positions()).await?;
        let shape = &self.shape;
        let o = self.offsets();
        let rows = shape.rows_per_layer();
        let word = |ix: u32| meta[ix as usize];
        let layer = |layer: u32| {
            let num_seen: Vec<u32> =
                (0..shape.batch_size).map(|b| word(o.num_seen + layer * shape.batch_size + b)).collect();
            let row = |row: u32| {
                let state_row = layer * rows + row;
                let len = word(o.lengths + state_row).min(shape.capacity);
                let compacted = word(o.compacted + state_row).min(len);
                let seen = num_seen[(row / shape.num_kv_heads) as usize].max(len);
                let base = state_row as usize * shape.capacity as usize;
                (0..len).map(|s| if s < compacted { positions[base + s as usize] } else { seen - (len - s) }).collect()
            };
            KeptLayer {
                status: Status(status[layer as usize]),
                positions: (0..rows).map(row).collect(),
                num_seen: num_seen.clone(),
            }
        };
        Ok(Kept { layers: (0..shape.num_layers).map(layer).collect() })
    }
}

/// Reads a whole buffer with usage `COPY_SRC`, after everything submitted so far. `queue` is the device's own: of another's wgpu
/// tells the host's handler alone, which panics by default.
///
/// # Errors
/// A buffer without that usage, or whose size is no multiple of 4; [`ReadError::Device`] where the device refuses the copy, as
/// it does one from another device's buffer, or one for which it has no memory; [`ReadError::Poll`] and [`ReadError::Map`] where
/// it fails.
pub async fn read_words(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
) -> Result<Vec<u32>, ReadError> {
    if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
        return Err(ArgumentError::MissingUsage { argument: "buffer", missing: "COPY_SRC".to_owned() }.into());
    }
    if !buffer.size().is_multiple_of(4) {
        return Err(ArgumentError::Misaligned { argument: "buffer", got: buffer.size() }.into());
    }
    let mut checks = Checks::default();
    let staging = checks.guard(device, "keynorm.read", || {
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("keynorm.read"),
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        queue.submit([encoder.finish()]);
        staging
    });
    checks.finish_async().await?;
    let (sender, receiver) = futures_channel::oneshot::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| {
        let _ = sender.send(result); // the receiver is gone only if this future was dropped
    });
    // Natively this waits; in a browser it returns at once and the callback comes by itself.
    device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| ReadError::Poll(e.to_string()))?;
    let mapped = receiver.await.map_err(|e| ReadError::Map(e.to_string()))?;
    mapped.map_err(|e| ReadError::Map(e.to_string()))?;
    let mapped = staging.slice(..).get_mapped_range().map_err(|e| ReadError::Map(e.to_string()))?;
    Ok(bytemuck::pod_collect_to_vec(&mapped))
}
