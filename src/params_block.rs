//! The buffer of all parameters of a binding.

use crate::bound::PARAMS_STRIDE;
use crate::kernel::Checks;

/// Parameter blocks, each at a multiple of [`PARAMS_STRIDE`].
#[derive(Default)]
pub(crate) struct ParamsBlock(pub Vec<u8>);

impl ParamsBlock {
    pub(crate) fn push<T: bytemuck::Pod>(&mut self, params: &T) -> u32 {
        const { assert!(size_of::<T>() <= PARAMS_STRIDE as usize, "a block is not cut") };
        let offset = self.0.len();
        self.0.extend_from_slice(bytemuck::bytes_of(params));
        self.0.resize(offset + PARAMS_STRIDE as usize, 0);
        u32::try_from(offset).unwrap_or(u32::MAX)
    }

    pub(crate) fn into_buffer(
        self,
        device: &wgpu::Device,
        label: &'static str,
        usage: wgpu::BufferUsages,
        checks: &mut Checks,
    ) -> wgpu::Buffer {
        let size = (self.0.len() as u64).max(u64::from(PARAMS_STRIDE));
        checks.guard(device, label, || {
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true };
            let buffer = device.create_buffer(&descriptor);
            // An error here means that the buffer itself was refused, which the guard reports.
            if let Ok(mut mapped) = buffer.get_mapped_range_mut(..self.0.len() as u64) {
                mapped.copy_from_slice(&self.0);
            }
            buffer.unmap();
            buffer
        })
    }
}
