//! The only place that builds shader modules and pipelines.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::device::{Capabilities, Options, ShaderPatch};
use crate::error::BuildError;
use crate::layout::{LayoutKind, create_arrays_layout, create_layout, create_pipeline_layout};
use crate::module::Module;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PipelineKey {
    module: Module,
    entry: &'static str,
    /// Of its arrays; 0: it has none.
    num_layers: u32,
    /// Constants, their values as bits.
    constants: Vec<(&'static str, u64)>,
}

/// Objects that several calls use.
#[derive(Debug, Default)]
struct Built {
    /// By number of layers.
    arrays: HashMap<u32, wgpu::BindGroupLayout>,
    modules: HashMap<Module, wgpu::ShaderModule>,
    pipelines: HashMap<PipelineKey, wgpu::ComputePipeline>,
}

/// Everything that is built once for a device.
#[derive(Debug)]
pub(crate) struct Kernels {
    pub device: wgpu::Device,
    pub capabilities: Capabilities,
    pipeline_cache: Option<wgpu::PipelineCache>,
    shader_patch: Option<ShaderPatch>,
    layouts: HashMap<LayoutKind, wgpu::BindGroupLayout>,
    /// What the device has accepted.
    shared: Mutex<Built>,
}

impl Kernels {
    pub fn new(device: &wgpu::Device, options: &Options, checks: &mut Checks) -> Result<Self, BuildError> {
        let capabilities = Capabilities::of(device, options)?;
        let mut layouts = HashMap::new();
        for kind in LayoutKind::ALL {
            layouts.insert(kind, checks.guard(device, "keynorm layouts", || create_layout(device, kind)));
        }
        Ok(Self {
            device: device.clone(),
            capabilities,
            pipeline_cache: options.pipeline_cache.clone(),
            shader_patch: options.shader_patch.clone(),
            layouts,
            shared: Mutex::default(),
        })
    }

    pub fn bind_group_layout(&self, kind: LayoutKind) -> &wgpu::BindGroupLayout {
        &self.layouts[&kind]
    }

    /// Of the arrays of so many layers; `None` of none.
    pub fn arrays_layout(&self, num_layers: u32, checks: &mut Checks) -> Option<wgpu::BindGroupLayout> {
        let count = NonZeroU32::new(num_layers)?;
        if let Some(layout) = self.found(checks, |built| built.arrays.get(&num_layers).cloned()) {
            return Some(layout);
        }
        let layout = checks.guard(&self.device, "keynorm layouts", || create_arrays_layout(&self.device, count));
        checks.built.arrays.insert(num_layers, layout.clone());
        Some(layout)
    }

    /// What this call has built before, or another whose objects the device has accepted.
    fn found<T>(&self, checks: &Checks, find: impl Fn(&Built) -> Option<T>) -> Option<T> {
        find(&checks.built).or_else(|| find(&self.shared()))
    }

    fn shared(&self) -> MutexGuard<'_, Built> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Checks::finish`]; then other calls may use what has been built.
    pub fn finish(&self, mut checks: Checks) -> Result<(), BuildError> {
        let built = std::mem::take(&mut checks.built);
        checks.finish()?;
        self.share(built);
        Ok(())
    }

    /// As [`Checks::finish_async`]; then other calls may use what has been built.
    pub async fn finish_async(&self, mut checks: Checks) -> Result<(), BuildError> {
        let built = std::mem::take(&mut checks.built);
        checks.finish_async().await?;
        self.share(built);
        Ok(())
    }

    fn share(&self, built: Built) {
        let mut shared = self.shared();
        shared.arrays.extend(built.arrays);
        shared.modules.extend(built.modules);
        shared.pipelines.extend(built.pipelines);
    }

    /// A pipeline, built on first use.
    pub fn pipeline(
        &self,
        module: Module,
        entry: &'static str,
        constants: &[(&'static str, f64)],
        checks: &mut Checks,
    ) -> wgpu::ComputePipeline {
        self.pipeline_of(module, entry, 0, constants, checks)
    }

    /// As [`Self::pipeline`], with arrays of so many layers as group 1.
    pub fn pipeline_of(
        &self,
        module: Module,
        entry: &'static str,
        num_layers: u32,
        constants: &[(&'static str, f64)],
        checks: &mut Checks,
    ) -> wgpu::ComputePipeline {
        let mut constants = constants.to_vec();
        if module.has_arrays() {
            constants.push(("NUM_LAYERS", f64::from(num_layers)));
        }
        let key = PipelineKey {
            module,
            num_layers,
            entry,
            constants: constants.iter().map(|&(name, value)| (name, value.to_bits())).collect(),
        };
        if let Some(pipeline) = self.found(checks, |built| built.pipelines.get(&key).cloned()) {
            return pipeline;
        }
        let shader = self.module(module, checks);
        let label = format!("{}.{entry}", module.label());
        let arrays = self.arrays_layout(num_layers, checks);
        let groups = [Some(self.bind_group_layout(module.layout())), arrays.as_ref()];
        let groups = &groups[..1 + usize::from(arrays.is_some())];
        let pipeline = checks.guard(&self.device, &label, || {
            let layout = create_pipeline_layout(&self.device, groups);
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&layout),
                module: &shader,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    // One invocation clears it on DX12 and Metal; the kernels clear what they use.
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.pipeline_cache.as_ref(),
            })
        });
        checks.built.pipelines.insert(key, pipeline.clone());
        pipeline
    }

    fn module(&self, module: Module, checks: &mut Checks) -> wgpu::ShaderModule {
        if let Some(shader) = self.found(checks, |built| built.modules.get(&module).cloned()) {
            return shader;
        }
        let source = module.source_by(self.capabilities.wide);
        let source = self.shader_patch.as_ref().map_or(source.clone(), |patch| patch.0(&source));
        let shader = checks.guard(&self.device, module.label(), || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(module.label()),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            create_module(&self.device, descriptor, module.has_arrays())
        });
        checks.built.modules.insert(module, shader.clone());
        shader
    }
}

/// The counters that wgpu adds to every loop are left out. So are its bounds checks of modules with arrays, where naga 30
/// takes the number of buffers for the length of each. Drivers may check nothing there: SwiftShader does not.
#[expect(unsafe_code, reason = "checks can be left out only through an unsafe function")]
fn create_module(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
    has_arrays: bool,
) -> wgpu::ShaderModule {
    let checks = wgpu::ShaderRuntimeChecks {
        force_loop_bounding: false,
        bounds_checks: !has_arrays,
        ..wgpu::ShaderRuntimeChecks::checked()
    };
    // SAFETY: without loop bounding a shader's loops must end. Every loop of ours counts towards a bound that it does not
    // change: constants, overrides, row lengths clamped to the capacity, numbers of tiles and counts clamped to a tile, the
    // bits of a mask, or halved intervals; or takes tiles by a count that only rises.
    // Without bounds checks indices must be in range. Which buffer of an array it is is clamped, since some devices look at it in
    // invocations that a branch has left out. The other indices of kernels with arrays (key_norm, compact, row and row_cached)
    // are made of parameters, which bind has checked against the buffers; of lengths clamped to the capacity; and of slots in
    // lists, which hold zeros or what the selectors have written there, or as many in workgroup memory as it has staged: slots
    // below such a length. Rows that are longer than workgroup memory holds are left as they are (both kernels of rows call
    // leave_longer of shared/select_row.wgsl); scouts have rows of no tokens. Where a range begins is clamped to the budget. Keys
    // that workgroup memory sets aside have been counted before, the same ones: no more than fit.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

#[cfg(not(target_arch = "wasm32"))]
type ScopeFuture = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;
#[cfg(target_arch = "wasm32")]
type ScopeFuture = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// Error scopes around the creation of objects, so that a refusal becomes a typed error and never reaches the host's
/// uncaptured-error handler.
#[derive(Default)]
pub(crate) struct Checks {
    pending: Vec<(String, ScopeFuture)>,
    /// What others may use once there is no error: see [`Kernels::finish`].
    built: Built,
}

impl Checks {
    pub fn guard<T>(&mut self, device: &wgpu::Device, label: &str, create: impl FnOnce() -> T) -> T {
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let created = create();
        self.pending.push((label.to_owned(), Box::pin(validation.pop())));
        self.pending.push((label.to_owned(), Box::pin(internal.pop())));
        self.pending.push((label.to_owned(), Box::pin(memory.pop())));
        created
    }

    /// The first error. Natively every scope is resolved already; in a browser those that are not are passed over: use
    /// the async forms there.
    pub fn finish(self) -> Result<(), BuildError> {
        let mut context = Context::from_waker(Waker::noop());
        for (label, mut future) in self.pending {
            if let Poll::Ready(Some(error)) = future.as_mut().poll(&mut context) {
                return Err(build_error(label, &error));
            }
        }
        Ok(())
    }

    /// The first error, once every scope has resolved.
    pub async fn finish_async(self) -> Result<(), BuildError> {
        for (label, future) in self.pending {
            if let Some(error) = future.await {
                return Err(build_error(label, &error));
            }
        }
        Ok(())
    }
}

fn build_error(label: String, error: &wgpu::Error) -> BuildError {
    match error {
        wgpu::Error::OutOfMemory { .. } => BuildError::OutOfMemory { label },
        other => BuildError::Device { label, message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noop() -> wgpu::Device {
        let noop = wgpu::NoopBackendOptions { enable: true, ..Default::default() };
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::NOOP,
            backend_options: wgpu::BackendOptions { noop, ..Default::default() },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
        pollster::block_on(adapter.request_device(&Default::default())).expect("a device").0
    }

    /// While the call that has built it does not know yet.
    #[test]
    fn what_is_refused_is_shared_with_nobody() {
        let options = Options {
            shader_patch: Some(ShaderPatch(std::sync::Arc::new(|source| format!("{source}\nfn f() {{")))),
            ..Options::default()
        };
        let mut checks = Checks::default();
        let kernels = Kernels::new(&noop(), &options, &mut checks).expect("the least of devices");
        kernels.finish(checks).expect("layouts alone");
        let build = || {
            let mut checks = Checks::default();
            let _ = kernels.pipeline(Module::Append, "append", &[("WG_SIZE", 256.0)], &mut checks);
            checks
        };
        let (first, second) = (build(), build());
        for checks in [second, first, build()] {
            let refused = kernels.finish(checks);
            assert!(matches!(refused, Err(BuildError::Device { .. })), "{refused:?}");
        }
    }
}
