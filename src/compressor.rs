//! The entry point: pipelines for a device, and plans made from them.

use std::sync::Arc;

use crate::device::Options;
use crate::error::BuildError;
use crate::kernel::{Checks, Kernels};
use crate::plan::Plan;
use crate::policy::Policy;
use crate::shape::KvShape;

/// What is built once for a device. Cheap to clone; `Send + Sync`.
///
/// # Example
/// ```no_run
/// # fn f(device: &wgpu::Device) -> Result<(), keynorm::BuildError> {
/// let compressor = keynorm::Compressor::new(device, keynorm::Options::default())?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Compressor {
    kernels: Arc<Kernels>,
}

impl Compressor {
    /// Builds what every plan shares. Natively errors are complete; in a browser use [`Compressor::new_async`].
    ///
    /// # Errors
    /// [`BuildError::Limit`] or [`BuildError::MissingFeature`] for what the device lacks; [`BuildError::Device`] where it
    /// refuses an object.
    pub fn new(device: &wgpu::Device, options: Options) -> Result<Self, BuildError> {
        let mut checks = Checks::default();
        let kernels = Kernels::new(device, &options, &mut checks)?;
        checks.finish()?;
        Ok(Self { kernels: Arc::new(kernels) })
    }

    /// As [`Compressor::new`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Compressor::new`].
    pub async fn new_async(device: &wgpu::Device, options: Options) -> Result<Self, BuildError> {
        let mut checks = Checks::default();
        let kernels = Kernels::new(device, &options, &mut checks)?;
        checks.finish_async().await?;
        Ok(Self { kernels: Arc::new(kernels) })
    }

    /// Checks a shape and a policy, sizes the scratch and builds the pipelines: once per geometry.
    ///
    /// # Errors
    /// [`BuildError::Argument`] for what the shape or policy gets wrong, else as [`Compressor::new`].
    pub fn plan(&self, shape: &KvShape, policy: &Policy) -> Result<Plan, BuildError> {
        let mut checks = Checks::default();
        let plan = Plan::new(&self.kernels, shape, policy, &mut checks)?;
        self.kernels.finish(checks)?;
        Ok(plan)
    }

    /// As [`Compressor::plan`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Compressor::plan`].
    pub async fn plan_async(&self, shape: &KvShape, policy: &Policy) -> Result<Plan, BuildError> {
        let mut checks = Checks::default();
        let plan = Plan::new(&self.kernels, shape, policy, &mut checks)?;
        self.kernels.finish_async(checks).await?;
        Ok(plan)
    }
}
