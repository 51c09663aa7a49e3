//! What a device offers, and which kernel variants follow from it.

use crate::error::BuildError;
use crate::module::Reduction;
use crate::plan::ROW_TOKENS;

/// Whether an optional feature is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Switch {
    /// Where the device has it.
    #[default]
    Auto,
    /// Always; an error where the device lacks it.
    On,
    /// Never.
    Off,
}

/// Options of a [`Compressor`](crate::Compressor). The defaults serve; the switches exist for tests and comparisons, but for
/// `layers_at_once`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Subgroup shuffles in the norm and in prefix sums ([`wgpu::Features::SUBGROUP`]), where subgroups have four lanes or
    /// more; else workgroup memory, as with `Off`. `Auto` on a CPU adapter takes neither shuffles nor workgroup memory in
    /// the norm, but an invocation a token, and short rows like long ones stage by stage; `On` and `Off` make it work as a
    /// GPU does, for tests. The bits of the result do not depend on it, but for f32 caches as far as the driver
    /// contracts multiply and add. In a browser none are used, and `On` is an error.
    pub subgroups: Switch,
    /// One dispatch for the rows of many layers: of neighbours that lie at even distances in one buffer within one binding,
    /// and, on Vulkan with wgpu's features for arrays of storage buffers (see [`optional_features`]), of layers in buffers of
    /// their own. `Auto` takes the latter where the device has them and is no CPU, `On` on CPUs too, `Off` neither. They
    /// have a limit too, `max_binding_array_elements_per_shader_stage`: below 4 `Auto` does without, and `On` is an error. The
    /// bits of the result do not depend on it.
    pub layers_at_once: Switch,
    /// A cache that pipelines are created with ([`wgpu::Features::PIPELINE_CACHE`]).
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    /// Largest storage binding that is used, bytes; caches beyond it go in windows of whole rows, rows beyond it in
    /// bands of their tokens. `None`: the device's `max_storage_buffer_binding_size`, below 4 GiB. A lower value, of 65536
    /// at least, serves tests.
    pub max_binding_bytes: Option<u64>,
    /// Applied to the text of every shader module, for tests that plant faults.
    #[doc(hidden)]
    pub shader_patch: Option<ShaderPatch>,
}

/// See [`Options::shader_patch`].
#[doc(hidden)]
#[derive(Clone)]
pub struct ShaderPatch(pub std::sync::Arc<dyn Fn(&str) -> String + Send + Sync>);

impl std::fmt::Debug for ShaderPatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShaderPatch")
    }
}

impl Options {
    /// The defaults, with subgroups switched.
    #[must_use]
    pub fn with_subgroups(subgroups: Switch) -> Self {
        Self { subgroups, ..Self::default() }
    }
}

/// Features that keynorm uses where `adapter` has them. None is needed.
///
/// # Example
/// ```no_run
/// # async fn f(adapter: wgpu::Adapter) -> Result<(), wgpu::RequestDeviceError> {
/// let (device, queue) = adapter
///     .request_device(&wgpu::DeviceDescriptor {
///         required_features: keynorm::optional_features(&adapter),
///         required_limits: keynorm::recommended_limits(&adapter),
///         ..Default::default()
///     })
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub fn optional_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let is_cpu = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    let wide = if is_cpu { wgpu::Features::SHADER_INT64 } else { wgpu::Features::empty() };
    let has_arrays = adapter.features().contains(ARRAYS) && adapter.get_info().backend == wgpu::Backend::Vulkan;
    let arrays = if has_arrays { ARRAYS } else { wgpu::Features::empty() };
    let features = adapter.features() & (wgpu::Features::SUBGROUP | wide) | arrays;
    if knows_shuffles(&adapter.get_info()) { features } else { features - wgpu::Features::SUBGROUP }
}

/// A browser does not know that shuffles are in uniform control flow, and refuses them.
fn knows_shuffles(info: &wgpu::AdapterInfo) -> bool {
    info.backend != wgpu::Backend::BrowserWebGpu
}

/// Storage buffers in arrays, which are taken on Vulkan: DX12 has none in wgpu 30, and on Metal they have not been tried.
/// Indices are the same for a workgroup, but naga does not see it; and wgpu 30 asks Vulkan for indices that are no
/// constants only with arrays of textures.
const ARRAYS: wgpu::Features = wgpu::Features::BUFFER_BINDING_ARRAY
    .union(wgpu::Features::STORAGE_RESOURCE_BINDING_ARRAY)
    .union(wgpu::Features::TEXTURE_BINDING_ARRAY)
    .union(wgpu::Features::SAMPLED_TEXTURE_AND_STORAGE_BUFFER_ARRAY_NON_UNIFORM_INDEXING);

/// Keys and values of two layers.
const LEAST_ARRAY_ELEMENTS: u32 = 4;

/// Elements of such arrays that are asked for: keys and values of 512 layers.
const MOST_ARRAY_ELEMENTS: u32 = 1024;

/// WebGPU's default limits, raised to the adapter's where keynorm gains from it: binding and buffer sizes, workgroup
/// size and memory, elements of arrays of buffers. keynorm works at the default limits too.
#[must_use]
pub fn recommended_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let have = adapter.limits();
    wgpu::Limits {
        max_buffer_size: have.max_buffer_size,
        max_storage_buffer_binding_size: have.max_storage_buffer_binding_size,
        max_compute_invocations_per_workgroup: have.max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x: have.max_compute_workgroup_size_x,
        max_compute_workgroup_storage_size: have.max_compute_workgroup_storage_size,
        max_binding_array_elements_per_shader_stage: have
            .max_binding_array_elements_per_shader_stage
            .min(MOST_ARRAY_ELEMENTS),
        min_storage_buffer_offset_alignment: have.min_storage_buffer_offset_alignment,
        ..wgpu::Limits::default().or_worse_values_from(&have)
    }
}

/// What the kernels need to know of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capabilities {
    /// Largest number of lanes that may use subgroup shuffles; 0 without subgroups.
    pub shuffle_lanes: u32,
    /// Largest binding, bytes, a multiple of 256.
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    /// Alignment of storage binding offsets, bytes, at least 16.
    pub offset_alignment: u64,
    /// Invocations of the workgroups that own a whole row.
    pub row_workgroup: u32,
    pub workgroup_bytes: u32,
    /// Keys that a bitonic sort holds in workgroup memory.
    pub sort_len: u32,
    pub max_workgroups: u32,
    /// A dispatch takes rows of many layers.
    pub layers_at_once: bool,
    /// Buffers that may be bound as arrays.
    pub array_elements: u32,
    /// Lanes run on a CPU: an invocation takes a whole token, in the norm and in the moves; walks are short and narrow.
    pub serial: bool,
    /// Accesses of 16 bytes are by 64-bit words: such a device loads each lane's word by itself.
    pub wide: bool,
}

/// The narrowest subgroups that prefix sums go by, as in shared/scan_subgroup.wgsl.
const LEAST_SUBGROUP: u32 = 4;

/// Bytes of a binding. Shaders count its words by u32, on Metal naga its bytes too: wgpu 30 makes no larger buffer, but where its
/// validation of indirect calls is off.
fn max_binding_bytes(wanted: Option<u64>, limit: u64) -> u64 {
    wanted.unwrap_or(u64::MAX).min(limit).clamp(1 << 16, u32::MAX.into()) / 256 * 256
}

impl Capabilities {
    /// Tokens of the longest row of which an invocation of the widest workgroups holds one eight.
    pub const fn longest_of_eights(&self) -> u32 {
        ROW_TOKENS * self.row_workgroup
    }

    /// Tokens of the longest row that a workgroup selects from by itself: with two eights an invocation, but on a CPU, where
    /// locals go through memory at each barrier. See `benches/record`.
    pub const fn longest_row(&self) -> u32 {
        if self.serial { self.longest_of_eights() } else { 2 * self.longest_of_eights() }
    }

    /// Whether a grid may be so many workgroups long.
    pub fn check_grid(&self, workgroups: u64) -> Result<(), BuildError> {
        let available = self.max_workgroups.into();
        if workgroups <= available {
            return Ok(());
        }
        Err(BuildError::Limit { limit: "max_compute_workgroups_per_dimension", needed: workgroups, available })
    }

    /// How `lanes` lanes of a token are added.
    pub fn reduction(&self, lanes: u32) -> Reduction {
        if lanes <= self.shuffle_lanes {
            Reduction::Subgroup
        } else if self.serial {
            Reduction::Serial
        } else {
            Reduction::Workgroup
        }
    }

    pub fn of(device: &wgpu::Device, options: &Options) -> Result<Self, BuildError> {
        let limits = device.limits();
        let info = device.adapter_info();
        let needed: [(&'static str, u64, u64); 6] = [
            ("max_storage_buffers_per_shader_stage", 8, limits.max_storage_buffers_per_shader_stage.into()),
            ("max_compute_invocations_per_workgroup", 256, limits.max_compute_invocations_per_workgroup.into()),
            ("max_compute_workgroup_size_x", 256, limits.max_compute_workgroup_size_x.into()),
            ("max_compute_workgroup_storage_size", 16384, limits.max_compute_workgroup_storage_size.into()),
            ("max_bindings_per_bind_group", 9, limits.max_bindings_per_bind_group.into()),
            ("max_storage_buffer_binding_size", 1 << 20, limits.max_storage_buffer_binding_size),
        ];
        for (limit, needed, available) in needed {
            if available < needed {
                return Err(BuildError::Limit { limit, needed, available });
            }
        }
        let has_subgroups = device.features().contains(wgpu::Features::SUBGROUP) && knows_shuffles(&info);
        if options.subgroups == Switch::On && !has_subgroups {
            return Err(BuildError::MissingFeature { feature: "SUBGROUP" });
        }
        let is_cpu = info.device_type == wgpu::DeviceType::Cpu;
        // On a CPU a shuffle is no cheaper than workgroup memory, and subgroups are narrower than a token.
        let use_subgroups = has_subgroups
            && info.subgroup_min_size >= LEAST_SUBGROUP
            && match options.subgroups {
                Switch::Auto => !is_cpu,
                Switch::On => true,
                Switch::Off => false,
            };
        let serial = is_cpu && options.subgroups == Switch::Auto;
        let has_arrays = device.features().contains(ARRAYS) && info.backend == wgpu::Backend::Vulkan;
        if options.layers_at_once == Switch::On && !has_arrays {
            return Err(BuildError::MissingFeature { feature: "BUFFER_BINDING_ARRAY" });
        }
        let elements = limits.max_binding_array_elements_per_shader_stage;
        if options.layers_at_once == Switch::On && elements < LEAST_ARRAY_ELEMENTS {
            let (needed, available) = (LEAST_ARRAY_ELEMENTS.into(), elements.into());
            return Err(BuildError::Limit { limit: "max_binding_array_elements_per_shader_stage", needed, available });
        }
        let takes_arrays = has_arrays && (options.layers_at_once == Switch::On || !is_cpu);
        let ample = limits.max_compute_workgroup_storage_size >= 24 * 1024;
        let large =
            ample && limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x) >= 1024;
        Ok(Self {
            shuffle_lanes: if use_subgroups { info.subgroup_min_size } else { 0 },
            max_binding_bytes: max_binding_bytes(options.max_binding_bytes, limits.max_storage_buffer_binding_size),
            max_buffer_bytes: limits.max_buffer_size,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(16),
            row_workgroup: if large { 1024 } else { 256 },
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            sort_len: if ample { 4096 } else { 2048 },
            serial,
            wide: serial && device.features().contains(wgpu::Features::SHADER_INT64),
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            layers_at_once: options.layers_at_once != Switch::Off,
            array_elements: if takes_arrays { elements } else { 0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device of 8 GiB a binding, as Metal says of itself where wgpu does not validate indirect calls.
    #[test]
    fn bindings_stay_below_4_gib() {
        for (wanted, limit, expected) in [
            (None, 8 << 30, (1 << 32) - 256),
            (Some(5 << 30), 8 << 30, (1 << 32) - 256),
            (None, (1 << 27) + 100, 1 << 27),
            (Some(1 << 20), 1 << 27, 1 << 20),
            (Some(7), 1 << 27, 1 << 16),
        ] {
            assert_eq!(max_binding_bytes(wanted, limit), expected, "{wanted:?} of {limit}");
        }
    }
}
