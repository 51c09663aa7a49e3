//! Bind group layouts.

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
    RowApart,
    FinishFour,
    FinishSixteen,
}

/// Storage buffers of a stage that the widest finish takes, and how many layers it finishes: all but three are scratch.
pub(crate) const FINISH_BUFFERS: u32 = 19;
pub(crate) const MOST_FINISHED: usize = FINISH_BUFFERS as usize - 3;

/// State, then the scratch of layers.
const FINISH: [(u32, bool); FINISH_BUFFERS as usize] = [
    (1, false),
    (2, false),
    (3, false),
    (4, true),
    (5, true),
    (6, true),
    (7, true),
    (8, true),
    (9, true),
    (10, true),
    (11, true),
    (12, true),
    (13, true),
    (14, true),
    (15, true),
    (16, true),
    (17, true),
    (18, true),
    (19, true),
];

impl LayoutKind {
    pub const ALL: [Self; 22] = [
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
        Self::RowApart,
        Self::FinishFour,
        Self::FinishSixteen,
    ];

    pub fn score(has_sums: bool, is_paged: bool) -> Self {
        match (has_sums, is_paged) {
            (false, false) => Self::KeyNorm,
            (true, false) => Self::KeyDiff,
            (false, true) => Self::KeyNormPaged,
            (true, true) => Self::KeyDiffPaged,
        }
    }

    pub fn compact(is_joined: bool, is_paged: bool) -> Self {
        match (is_joined, is_paged) {
            (false, false) => Self::Compact,
            (true, false) => Self::CompactJoined,
            (false, true) => Self::CompactPaged,
            (true, true) => Self::CompactJoinedPaged,
        }
    }

    /// (binding, read-only) of the storage buffers. Binding 0 is always the uniform parameters.
    fn storage(self) -> &'static [(u32, bool)] {
        match self {
            Self::KeyNorm => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false)],
            Self::KeyDiff => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (7, false)],
            Self::TopK => &[(1, true), (2, true), (3, true), (4, false), (5, false), (6, false), (7, true)],
            Self::Order => &[(1, true), (2, true), (3, false), (4, false), (5, false), (6, false)],
            Self::Reserve => &[(1, false), (2, true), (3, true)],
            Self::Pool => &[(1, true), (2, true), (3, false), (4, false), (5, true), (6, false)],
            Self::State => &[(1, false), (2, false), (3, true), (4, true), (5, false), (6, false), (7, true)],
            Self::Bitonic => {
                &[(1, true), (2, true), (3, true), (4, false), (5, false), (6, false), (7, true), (8, false)]
            }
            Self::Rotate => &[(1, false), (2, true), (3, true), (4, true)],
            Self::Renumber => &[(1, false)],
            Self::Append => &[(1, false), (2, true)],
            Self::Compact => &[(1, false), (2, false), (3, true), (4, true)],
            Self::CompactJoined => &[(1, false), (3, true), (4, true)],
            Self::KeyNormPaged => &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (8, false)],
            Self::KeyDiffPaged => {
                &[(1, false), (2, true), (3, true), (4, false), (5, false), (6, false), (7, false), (8, false)]
            }
            Self::CompactPaged => &[(1, false), (2, false), (3, true), (4, true), (8, false)],
            Self::CompactJoinedPaged => &[(1, false), (3, true), (4, true), (8, false)],
            Self::Pages => &[(1, false), (2, false), (3, false), (4, false), (5, false)],
            Self::Row => {
                &[(1, false), (2, false), (3, false), (4, false), (5, false), (6, false), (7, false), (8, true)]
            }
            Self::RowApart => &[(1, false), (2, false), (3, true), (4, true), (5, false), (6, false), (8, true)],
            Self::FinishFour => FINISH.split_at(7).0,
            Self::FinishSixteen => &FINISH,
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
                | Self::RowApart
                | Self::FinishFour
                | Self::FinishSixteen
        )
    }

    /// Whether a stage of so many storage buffers has room for it.
    pub fn fits(self, num_buffers: u32) -> bool {
        self.storage().len() <= num_buffers as usize
    }

    /// Binding numbers in order, the uniform's first.
    pub fn bindings(self) -> impl Iterator<Item = u32> {
        std::iter::once(0).chain(self.storage().iter().map(|&(binding, _)| binding))
    }
}

pub(crate) fn create_layout(device: &wgpu::Device, kind: LayoutKind) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, kind.has_dynamic_params())];
    for &(binding, read_only) in kind.storage() {
        entries.push(entry(binding, wgpu::BufferBindingType::Storage { read_only }, false));
    }
    let bind_group_layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("keynorm"), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some("keynorm"),
        bind_group_layouts: &[Some(&bind_group_layout)],
        immediate_size: 0,
    });
    (bind_group_layout, pipeline_layout)
}
