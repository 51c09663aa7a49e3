//! Shader modules: every kernel in every variant.

use crate::layout::LayoutKind;
use crate::shape::Dtype;

/// How a tensor is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// 16-byte accesses.
    Vec4,
    /// 4-byte accesses.
    Word,
    /// Values that are bound with the keys.
    Joined,
}

impl Access {
    /// Bytes of the unit in which strides and bases are counted.
    pub fn unit_bytes(self) -> u64 {
        if self == Self::Vec4 { 16 } else { 4 }
    }
}

/// How the lanes of a token are added in the norm. The bits are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// By subgroup shuffles.
    Subgroup,
    /// Through workgroup memory.
    Workgroup,
    /// By one invocation.
    Serial,
}

/// How a kernel finds the tokens of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tokens {
    /// By strides, in one buffer a tensor.
    Strided,
    /// By strides, in a buffer to each layer: bound as an array, which takes wgpu's features for that.
    Arrays,
    /// By a page table.
    Paged,
}

/// A shader module: which files it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Module {
    /// Key norms.
    KeyNorm {
        /// Element type of the keys.
        dtype: Dtype,
        /// 16-byte accesses, else 4-byte ones.
        vec4: bool,
        /// How the lanes of a token are added.
        reduction: Reduction,
        /// How tokens are found.
        tokens: Tokens,
    },
    /// Cosines with the mean of normalised keys, or distances to the mean key.
    KeyDiff {
        /// Element type of the keys.
        dtype: Dtype,
        /// 16-byte accesses, else 4-byte ones.
        vec4: bool,
        /// How the lanes of a token are added.
        reduction: Reduction,
        /// Tokens are found by a page table, else by strides.
        paged: bool,
    },
    /// Ratios of value norms to key norms; the norms of both are of this kind.
    ValueKeyRatio {
        /// Element type of the keys, or of the values.
        dtype: Dtype,
        /// 16-byte accesses, else 4-byte ones.
        vec4: bool,
        /// How the lanes of a token are added.
        reduction: Reduction,
        /// Tokens are found by a page table, else by strides.
        paged: bool,
    },
    /// Scores of the caller's.
    External,
    /// Radix selector of whole rows, and the histogram of longer ones.
    Radix {
        /// Sums over a workgroup are by subgroups.
        subgroups: bool,
    },
    /// Selection of long rows by tiles.
    RadixLong {
        /// Sums over a workgroup are by subgroups.
        subgroups: bool,
    },
    /// Bitonic selector.
    Bitonic,
    /// Order keys from cached norms.
    Order,
    /// Segments of positions that keep tokens of their own.
    Reserve,
    /// Budgets shared by the heads of a layer.
    Pool,
    /// Keys turned to other positions.
    Rotate {
        /// Element type of the keys.
        dtype: Dtype,
    },
    /// Cache state after that.
    Renumber,
    /// Cache state after a compression.
    State,
    /// Counting appended tokens.
    Append,
    /// Moves of rows.
    Compact {
        /// 16-byte accesses to keys, else 4-byte ones.
        keys_vec4: bool,
        /// Likewise for values; `None` when they are bound with the keys.
        values_vec4: Option<bool>,
        /// How tokens are found.
        tokens: Tokens,
    },
    /// Short rows: a whole compression in one dispatch, a workgroup to a row, or all that follows the score.
    Row {
        /// Element type of the keys, which 16-byte accesses reach like the values.
        dtype: Dtype,
        /// How the lanes of a token are added.
        reduction: Reduction,
        /// Layers have buffers of their own, bound as arrays.
        arrays: bool,
    },
    /// Likewise of cached norms, all in one dispatch.
    RowCached {
        /// Sums over a workgroup are by subgroups.
        subgroups: bool,
        /// 16-byte accesses to keys, else 4-byte ones.
        keys_vec4: bool,
        /// Likewise for values.
        values_vec4: bool,
        /// Layers have buffers of their own, bound as arrays.
        arrays: bool,
    },
    /// Page tables of a paged cache.
    Pages,
    /// Moves of one tensor's rows that exceed a binding.
    CompactBands {
        /// 16-byte accesses, else 4-byte ones.
        vec4: bool,
        /// From one band to another, else within one.
        pair: bool,
    },
}

impl Tokens {
    pub(crate) const fn by_table(paged: bool) -> Self {
        if paged { Self::Paged } else { Self::Strided }
    }
}

impl Module {
    /// Every module there is, for tests of the shaders themselves.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::External,
            Self::Bitonic,
            Self::Order,
            Self::Reserve,
            Self::Pool,
            Self::Renumber,
            Self::State,
            Self::Append,
            Self::Pages,
        ];
        for subgroups in [true, false] {
            all.extend([Self::Radix { subgroups }, Self::RadixLong { subgroups }]);
            all.push(Self::RowCached { subgroups, keys_vec4: true, values_vec4: true, arrays: true });
            for (keys_vec4, values_vec4) in [(true, true), (true, false), (false, true), (false, false)] {
                all.push(Self::RowCached { subgroups, keys_vec4, values_vec4, arrays: false });
            }
        }
        all.extend([Dtype::F32, Dtype::F16, Dtype::Bf16].map(|dtype| Self::Rotate { dtype }));
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2] {
            for reduction in [Reduction::Subgroup, Reduction::Workgroup] {
                all.extend([false, true].map(|arrays| Self::Row { dtype, reduction, arrays }));
            }
            for reduction in [Reduction::Subgroup, Reduction::Workgroup, Reduction::Serial] {
                all.push(Self::KeyNorm { dtype, vec4: true, reduction, tokens: Tokens::Arrays });
                for (vec4, paged) in [(true, false), (false, false), (true, true), (false, true)] {
                    all.push(Self::KeyNorm { dtype, vec4, reduction, tokens: Tokens::by_table(paged) });
                    all.push(Self::KeyDiff { dtype, vec4, reduction, paged });
                    all.push(Self::ValueKeyRatio { dtype, vec4, reduction, paged });
                }
            }
        }
        all.push(Self::Compact { keys_vec4: true, values_vec4: Some(true), tokens: Tokens::Arrays });
        for keys_vec4 in [true, false] {
            for values_vec4 in [Some(true), Some(false), None] {
                let tokens = [Tokens::Strided, Tokens::Paged];
                all.extend(tokens.map(|tokens| Self::Compact { keys_vec4, values_vec4, tokens }));
            }
            all.extend([true, false].map(|pair| Self::CompactBands { vec4: keys_vec4, pair }));
        }
        for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::I8Scaled] {
            for reduction in [Reduction::Subgroup, Reduction::Workgroup, Reduction::Serial] {
                for paged in [false, true] {
                    all.push(Self::KeyNorm { dtype, vec4: false, reduction, tokens: Tokens::by_table(paged) });
                    all.push(Self::ValueKeyRatio { dtype, vec4: false, reduction, paged });
                }
            }
        }
        all
    }

    /// Label, also of the pipelines made of it: `keynorm.<op>`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::KeyNorm { .. } => "keynorm.key_norm",
            Self::KeyDiff { .. } => "keynorm.key_diff",
            Self::ValueKeyRatio { .. } => "keynorm.value_key_ratio",
            Self::External => "keynorm.external",
            Self::Radix { .. } => "keynorm.radix",
            Self::RadixLong { .. } => "keynorm.radix_long",
            Self::Bitonic => "keynorm.bitonic",
            Self::Order => "keynorm.order",
            Self::Reserve => "keynorm.reserve",
            Self::Pool => "keynorm.pool",
            Self::Rotate { .. } => "keynorm.rotate",
            Self::Renumber => "keynorm.renumber",
            Self::State => "keynorm.state",
            Self::Append => "keynorm.append",
            Self::Compact { .. } => "keynorm.compact",
            Self::Row { .. } => "keynorm.row",
            Self::RowCached { .. } => "keynorm.row_cached",
            Self::Pages => "keynorm.pages",
            Self::CompactBands { .. } => "keynorm.compact_bands",
        }
    }

    /// Whether keys and values are bound as arrays.
    pub(crate) fn has_arrays(&self) -> bool {
        match self {
            Self::KeyNorm { tokens, .. } | Self::Compact { tokens, .. } => *tokens == Tokens::Arrays,
            Self::Row { arrays, .. } | Self::RowCached { arrays, .. } => *arrays,
            _ => false,
        }
    }

    pub(crate) fn layout(&self) -> LayoutKind {
        match self {
            Self::KeyNorm { tokens, .. } => LayoutKind::score(false, *tokens),
            Self::ValueKeyRatio { paged, .. } => LayoutKind::score(false, Tokens::by_table(*paged)),
            Self::KeyDiff { paged, .. } => LayoutKind::score(true, Tokens::by_table(*paged)),
            Self::External => LayoutKind::KeyNorm,
            Self::Row { arrays: false, .. } | Self::RowCached { arrays: false, .. } => LayoutKind::Row,
            Self::Row { arrays: true, .. } | Self::RowCached { arrays: true, .. } => LayoutKind::RowArrays,
            Self::Pages => LayoutKind::Pages,
            Self::Radix { .. } | Self::RadixLong { .. } => LayoutKind::TopK,
            Self::Order => LayoutKind::Order,
            Self::Reserve => LayoutKind::Reserve,
            Self::Pool => LayoutKind::Pool,
            Self::Rotate { .. } => LayoutKind::Rotate,
            Self::Renumber => LayoutKind::Renumber,
            Self::State => LayoutKind::State,
            Self::Bitonic => LayoutKind::Bitonic,
            Self::Append => LayoutKind::Append,
            Self::Compact { values_vec4, tokens, .. } => LayoutKind::compact(values_vec4.is_none(), *tokens),
            Self::CompactBands { pair: true, .. } => LayoutKind::Bands,
            Self::CompactBands { pair: false, .. } => LayoutKind::BandsJoined,
        }
    }
}
