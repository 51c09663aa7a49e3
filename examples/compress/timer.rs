//! The GPU's own clock, at both ends of a pass.

use crate::Failure;

/// Two timestamps. Needs [`wgpu::Features::TIMESTAMP_QUERY`].
#[derive(Debug)]
pub struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
}

impl Timer {
    pub fn new(device: &wgpu::Device) -> Self {
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("compress"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("compress"),
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Self { queries, resolved }
    }

    /// What the pass is begun with.
    pub fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// To be recorded after the pass.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
    }

    /// Seconds of the pass; `None` where the clock did not move forward, as on some drivers.
    pub fn read(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Option<f64>, Failure> {
        let read = keynorm::kept::read_words(device, queue, &self.resolved);
        let words = pollster::block_on(read).map_err(|e| e.to_string())?;
        let ticks: &[u64] = &bytemuck::pod_collect_to_vec(&words);
        let elapsed = ticks[1].checked_sub(ticks[0]).filter(|&e| e > 0);
        #[expect(clippy::cast_precision_loss, reason = "a duration")]
        let seconds = elapsed.map(|e| e as f64 * f64::from(queue.get_timestamp_period()) * 1e-9);
        Ok(seconds)
    }
}
