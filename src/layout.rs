//! Bind group layouts.

use std::num::NonZeroU32;

use crate::module::Tokens;

/// Bind group layouts: what each binding is, `None` a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LayoutKind {
    KeyNorm,
    KeyDiff,
    TopK,
    Order,
    Reserve,
    Pool,
    Rotate,
    Renumber,
    State,
    Bitonic,
    Append,
    Compact,
    CompactJoined,
    KeyNormPaged,
    KeyDiffPaged,
    CompactPaged,
    CompactJoinedPaged,
    Pages,
    Row,
    KeyNormArrays,
    CompactArrays,
    RowArrays,
    Bands,
    BandsJoined,
}

impl LayoutKind {
    pub const ALL: [Self; 24] = [
        Self::KeyNorm,
        Self::KeyDiff,
        Self::TopK,
        Self::Order,
        Self::Reserve,
        Self::Pool,
        Self::Rotate,
        Self::Renumber,
        Self::State,
        Self::Bitonic,
        Self::Append,
        Self::Compact,
        Self::CompactJoined,
        Self::KeyNormPaged,
        Self::KeyDiffPaged,
        Self::CompactPaged,
        Self::CompactJoinedPaged,
        Self::Pages,
        Self::Row,
        Self::KeyNormArrays,
        Self::CompactArrays,
        Self::RowArrays,
        Self::Bands,
        Self::BandsJoined,
    ];

    pub fn score(has_sums: bool, tokens: Tokens) -> Self {
        match (has_sums, tokens) {
            (false, Tokens::Strided) => Self::KeyNorm,
            (false, Tokens::Arrays) => Self::KeyNormArrays,
            (false, Tokens::Paged) => Self::KeyNormPaged,
            (true, Tokens::Strided | Tokens::Arrays) => Self::KeyDiff,
            (true, Tokens::Paged) => Self::KeyDiffPaged,
        }
    }

    pub fn compact(is_joined: bool, tokens: Tokens) -> Self {
        match (is_joined, tokens) {
            (_, Tokens::Arrays) => Self::CompactArrays,
            (false, Tokens::Strided) => Self::Compact,
            (true, Tokens::Strided) => Self::CompactJoined,
            (false, Tokens::Paged) => Self::CompactPaged,
            (true, Tokens::Paged) => Self::CompactJoinedPaged,
        }
    }

    /// (binding, read-only) of the storage buffers. Binding 0 is always the uniform parameters.
    fn storage(self) -> &'static [(u32, bool)] {
        match self {
            Self::KeyNorm => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false)],
            Self::KeyDiff => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (7, false)],
            Self::TopK => &[(1, true), (2, true), (3, true), (4, false), (5, false), (6, false), (7, true)],
            Self::Order => &[(1, true), (2, true), (3, false), (4, false), (5, false), (6, false), (7, false)],
            Self::Reserve => &[(1, false), (2, true), (3, true)],
            Self::Pool => &[(1, true), (2, true), (3, false), (4, false), (5, true), (6, false)],
            Self::State => &[(1, false), (2, false), (3, true), (4, true), (5, false), (6, false), (7, true)],
            Self::Bitonic => {
                &[(1, true), (2, true), (3, true), (4, false), (5, false), (6, false), (7, true), (8, false)]
            }
            Self::Rotate => &[(1, false), (2, true), (3, true), (4, true)],
            Self::Renumber => &[(1, false)],
            Self::Append => &[(1, false), (2, true)],
            Self::Compact => &[(1, false), (2, false), (3, true), (4, true), (5, false)],
            Self::CompactJoined => &[(1, false), (3, true), (4, true), (5, false)],
            Self::KeyNormPaged => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (8, false)],
            Self::KeyDiffPaged => {
                &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (7, false), (8, false)]
            }
            Self::CompactPaged => &[(1, false), (2, false), (3, true), (4, true), (5, false), (8, false)],
            Self::CompactJoinedPaged => &[(1, false), (3, true), (4, true), (5, false), (8, false)],
            Self::Pages => &[(1, false), (2, false), (3, false), (4, false), (5, false)],
            Self::Row => &[(1, false), (2, false), (3, false), (4, false), (5, false), (7, false), (8, true)],
            Self::KeyNormArrays => &[(2, true), (3, true), (4, false), (5, false), (6, false)],
            Self::CompactArrays => &[(3, true), (4, true), (5, false)],
            Self::RowArrays => &[(3, false), (4, false), (5, false), (7, false), (8, true)],
            Self::Bands => &[(1, false), (2, false), (3, true), (4, true)],
            Self::BandsJoined => &[(1, false), (3, true), (4, true)],
        }
    }

    fn has_dynamic_params(self) -> bool {
        !matches!(
            self,
            Self::KeyNorm
                | Self::KeyDiff
                | Self::KeyNormPaged
                | Self::KeyDiffPaged
                | Self::Rotate
                | Self::Renumber
                | Self::Row
                | Self::KeyNormArrays
                | Self::RowArrays
        )
    }

    /// Binding numbers in order, the uniform's first.
    pub fn bindings(self) -> impl Iterator<Item = u32> {
        std::iter::once(0).chain(self.storage().iter().map(|&(binding, _)| binding))
    }
}

/// Of group 0.
pub(crate) fn create_layout(device: &wgpu::Device, kind: LayoutKind) -> wgpu::BindGroupLayout {
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, kind.has_dynamic_params(), None)];
    for &(binding, read_only) in kind.storage() {
        entries.push(entry(binding, wgpu::BufferBindingType::Storage { read_only }, false, None));
    }
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("keynorm"), entries: &entries })
}

/// Keys and values of so many layers, each in buffers of its own.
pub(crate) fn create_arrays_layout(device: &wgpu::Device, num_layers: NonZeroU32) -> wgpu::BindGroupLayout {
    let storage = wgpu::BufferBindingType::Storage { read_only: false };
    let entries = [0, 1].map(|binding| entry(binding, storage, false, Some(num_layers)));
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("keynorm"), entries: &entries })
}

pub(crate) fn create_pipeline_layout(
    device: &wgpu::Device,
    groups: &[Option<&wgpu::BindGroupLayout>],
) -> wgpu::PipelineLayout {
    device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some("keynorm"),
        bind_group_layouts: groups,
        immediate_size: 0,
    })
}

fn entry(
    binding: u32,
    ty: wgpu::BufferBindingType,
    has_dynamic_offset: bool,
    count: Option<NonZeroU32>,
) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count,
    }
}
