//! Shader modules: which files each is made of.

use crate::layout::LayoutKind;
use crate::shape::Dtype;

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!("../shaders/", $path))
    };
}

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
        /// Tokens are found by a page table, else by strides.
        paged: bool,
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
    /// Radix selector, and the emission for long rows.
    Radix,
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
        /// Rows of keys, of values, end within a 16-byte chunk.
        tails: (bool, bool),
        /// Tokens are found by a page table, else by strides.
        paged: bool,
    },
    /// A whole compression in one dispatch, a workgroup to a row.
    Row {
        /// Element type of the keys, which 16-byte accesses reach like the values.
        dtype: Dtype,
        /// How the lanes of a token are added.
        reduction: Reduction,
        /// With scratch of its own for each layer.
        apart: bool,
    },
    /// Cache state after a compression of many layers at once.
    FinishLayers {
        /// Up to sixteen a dispatch, else four.
        sixteen: bool,
    },
    /// Page tables of a paged cache.
    Pages,
    /// Moves of one tensor's rows that exceed a binding.
    CompactBands {
        /// 16-byte accesses, else 4-byte ones.
        vec4: bool,
        /// Rows end within a 16-byte chunk.
        tail: bool,
        /// From one band to another, else within one.
        pair: bool,
    },
}

impl Module {
    /// Every module there is, for tests of the shaders themselves.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::External,
            Self::Radix,
            Self::Bitonic,
            Self::Order,
            Self::Reserve,
            Self::Pool,
            Self::Renumber,
            Self::State,
            Self::Append,
            Self::Pages,
            Self::FinishLayers { sixteen: false },
            Self::FinishLayers { sixteen: true },
        ];
        all.extend([Dtype::F32, Dtype::F16, Dtype::Bf16].map(|dtype| Self::Rotate { dtype }));
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for reduction in [Reduction::Subgroup, Reduction::Workgroup] {
                all.extend([false, true].map(|apart| Self::Row { dtype, reduction, apart }));
            }
            for reduction in [Reduction::Subgroup, Reduction::Workgroup, Reduction::Serial] {
                for (vec4, paged) in [(true, false), (false, false), (true, true), (false, true)] {
                    all.push(Self::KeyNorm { dtype, vec4, reduction, paged });
                    all.push(Self::KeyDiff { dtype, vec4, reduction, paged });
                    all.push(Self::ValueKeyRatio { dtype, vec4, reduction, paged });
                }
            }
        }
        for keys_vec4 in [true, false] {
            for values_vec4 in [Some(true), Some(false), None] {
                for paged in [false, true] {
                    all.push(Self::Compact { keys_vec4, values_vec4, tails: (false, false), paged });
                    // Rows with a tail are moved by words; of values that are bound with such keys, neither goes by chunks.
                    for tails in [(false, true), (true, false), (true, true)] {
                        let by_chunks = (tails.0 || values_vec4.is_none()) && keys_vec4;
                        let values_by_chunks = tails.1 && values_vec4 == Some(true);
                        let keys_alone = values_vec4.is_none() && tails == (true, false);
                        if !by_chunks && !values_by_chunks && !keys_alone {
                            all.push(Self::Compact { keys_vec4, values_vec4, tails, paged });
                        }
                    }
                }
            }
            for pair in [true, false] {
                all.push(Self::CompactBands { vec4: keys_vec4, tail: false, pair });
            }
        }
        all.extend([true, false].map(|pair| Self::CompactBands { vec4: false, tail: true, pair }));
        for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::I8Scaled] {
            for reduction in [Reduction::Subgroup, Reduction::Workgroup, Reduction::Serial] {
                for paged in [false, true] {
                    all.push(Self::KeyNorm { dtype, vec4: false, reduction, paged });
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
            Self::Radix => "keynorm.radix",
            Self::Bitonic => "keynorm.bitonic",
            Self::Order => "keynorm.order",
            Self::Reserve => "keynorm.reserve",
            Self::Pool => "keynorm.pool",
            Self::Rotate { .. } => "keynorm.rotate",
            Self::Renumber => "keynorm.renumber",
            Self::State => "keynorm.state",
            Self::Append => "keynorm.append",
            Self::Compact { .. } => "keynorm.compact",
            Self::Row { apart: false, .. } => "keynorm.row",
            Self::Row { apart: true, .. } => "keynorm.row_apart",
            Self::FinishLayers { .. } => "keynorm.finish_layers",
            Self::Pages => "keynorm.pages",
            Self::CompactBands { .. } => "keynorm.compact_bands",
        }
    }

    /// WGSL text: the kernel's file first, so that line numbers in messages are its own.
    #[must_use]
    pub fn source(&self) -> String {
        self.source_by(false)
    }

    /// As [`Module::source`]; with `wide` 16-byte accesses are by 64-bit words, which takes `SHADER_INT64`.
    #[must_use]
    pub fn source_by(&self, wide: bool) -> String {
        let wide_keys = |vec4| if wide && vec4 { shader!("shared/keys_u64.wgsl") } else { keys(vec4) };
        let moved_values = if wide { shader!("shared/values_u64.wgsl") } else { shader!("shared/values_vec4.wgsl") };
        let address = |paged| {
            if paged { shader!("shared/address_paged.wgsl") } else { shader!("shared/address_strided.wgsl") }
        };
        let layout = shader!("shared/state_layout.wgsl");
        let state = [layout, shader!("shared/state_rows.wgsl")].concat();
        let state = state.as_str();
        let params = shader!("shared/top_k_params.wgsl");
        let digits = shader!("shared/first_digit.wgsl");
        let rule = concat!(shader!("shared/row_rule.wgsl"), shader!("shared/wide.wgsl"));
        let select_row = shader!("shared/select_row.wgsl");
        let kept_bits = shader!("shared/kept_bits.wgsl");
        let rows = [params, shader!("shared/top_k_rows.wgsl"), kept_bits, select_row, rule].concat();
        let radix_row = shader!("shared/radix_row.wgsl");
        let moves = concat!(shader!("shared/fill.wgsl"), shader!("shared/walk.wgsl"));
        let rows = rows.as_str();
        let order_key = shader!("shared/order_key.wgsl");
        let write_key = shader!("shared/write_key.wgsl");
        let score_rows = concat!(shader!("shared/score_rows.wgsl"), shader!("shared/write_key.wgsl"));
        let info = shader!("shared/row_info.wgsl");
        let info_words = shader!("shared/info_words.wgsl");
        let finish_slot = shader!("shared/finish_slot.wgsl");
        let scan = shader!("shared/scan.wgsl");
        let emit = shader!("shared/top_k_emit.wgsl");
        let recent = concat!(shader!("shared/wide.wgsl"), shader!("shared/recent.wgsl"));
        match *self {
            Self::KeyNorm { dtype, vec4, reduction, paged } => [
                shader!("key_norm.wgsl"),
                write_key,
                digits,
                recent,
                order_key,
                state,
                address(paged),
                elements(dtype, wide_keys(vec4)).as_str(),
                norm_tokens(reduction),
                shader!("shared/score_tile.wgsl"),
                reduce(reduction),
                score_entry(reduction),
            ]
            .concat(),
            Self::KeyDiff { dtype, vec4, reduction, paged } => [
                shader!("key_diff.wgsl"),
                score_rows,
                digits,
                recent,
                state,
                address(paged),
                elements(dtype, wide_keys(vec4)).as_str(),
                unpacked(dtype),
                shader!("shared/inverse_sqrt.wgsl"),
                match reduction {
                    Reduction::Subgroup => {
                        concat!(shader!("shared/diff_tile.wgsl"), shader!("shared/diff_subgroup.wgsl"))
                    }
                    Reduction::Workgroup => {
                        concat!(shader!("shared/diff_tile.wgsl"), shader!("shared/diff_workgroup.wgsl"))
                    }
                    Reduction::Serial => shader!("shared/diff_serial.wgsl"),
                },
                if reduction == Reduction::Serial { "" } else { shader!("shared/reduced.wgsl") },
                reduce(reduction),
                if reduction == Reduction::Serial { "" } else { score_entry(reduction) },
            ]
            .concat(),
            Self::ValueKeyRatio { dtype, vec4, reduction, paged } => [
                shader!("value_key_ratio.wgsl"),
                score_rows,
                digits,
                recent,
                state,
                address(paged),
                elements(dtype, wide_keys(vec4)).as_str(),
                shader!("shared/inverse_sqrt.wgsl"),
                norm_tokens(reduction),
                shader!("shared/score_tile.wgsl"),
                reduce(reduction),
                score_entry(reduction),
            ]
            .concat(),
            Self::External => [shader!("external.wgsl"), score_rows, digits, recent, state, address(false)].concat(),
            Self::Row { dtype, reduction, apart } => [
                if apart { shader!("row_apart.wgsl") } else { shader!("row.wgsl") },
                if apart { kept_bits } else { "" },
                if apart { info_words } else { "" },
                shader!("shared/row_params.wgsl"),
                shader!("shared/row_body.wgsl"),
                select_row,
                radix_row,
                moves,
                digits,
                rule,
                shader!("shared/recent.wgsl"),
                order_key,
                state,
                address(false),
                keys(true),
                squares(dtype),
                shader!("shared/values_vec4.wgsl"),
                emit,
                scan,
                norm_tokens(reduction),
                reduce(reduction),
                row_entry(reduction),
            ]
            .concat(),
            Self::FinishLayers { sixteen } => [
                shader!("finish_layers.wgsl"),
                if sixteen { shader!("shared/lists_16.wgsl") } else { shader!("shared/lists_4.wgsl") },
                finish_slot,
                info,
                info_words,
                layout,
            ]
            .concat(),
            Self::Radix => [shader!("radix.wgsl"), radix_row, digits, rows, info, state, emit, scan].concat(),
            Self::Bitonic => [shader!("bitonic.wgsl"), rows, info, state, scan, emit].concat(),
            Self::Order => [shader!("order.wgsl"), order_key, recent, state].concat(),
            Self::Reserve => [shader!("reserve.wgsl"), params, state, scan].concat(),
            Self::Pool => [shader!("pool.wgsl"), params, rule, info, layout, scan].concat(),
            Self::Rotate { dtype } => [
                shader!("rotate.wgsl"),
                match dtype {
                    Dtype::F32 => shader!("shared/pair_f32.wgsl"),
                    Dtype::F16 => shader!("shared/pair_f16.wgsl"),
                    Dtype::Bf16 => shader!("shared/pair_bf16.wgsl"),
                    Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => "", // refused
                },
                state,
                shader!("shared/longest_row.wgsl"),
                shader!("shared/wide.wgsl"),
            ]
            .concat(),
            Self::Renumber => [shader!("renumber.wgsl"), layout, shader!("shared/longest_row.wgsl")].concat(),
            Self::State => [shader!("state.wgsl"), finish_slot, params, info, layout].concat(),
            Self::Append => [shader!("append.wgsl"), layout].concat(),
            Self::Pages => [shader!("pages.wgsl"), layout].concat(),
            Self::Compact { keys_vec4, values_vec4, tails, paged } => [
                shader!("compact.wgsl"),
                moves,
                info,
                address(paged),
                if tails.0 { shader!("shared/keys_tail.wgsl") } else { wide_keys(keys_vec4) },
                match (values_vec4, tails.1) {
                    (None, true) => shader!("shared/values_joined_tail.wgsl"),
                    (None, false) => shader!("shared/values_joined.wgsl"),
                    (Some(_), true) => shader!("shared/values_tail.wgsl"),
                    (Some(true), false) => moved_values,
                    (Some(false), false) => shader!("shared/values_word.wgsl"),
                },
            ]
            .concat(),
            Self::CompactBands { vec4, tail, pair } => [
                shader!("compact_bands.wgsl"),
                info,
                address(false),
                match (pair, vec4, tail) {
                    (false, _, true) => shader!("shared/keys_tail.wgsl"),
                    (false, _, false) => wide_keys(vec4),
                    (true, _, true) => shader!("shared/keys_pair_tail.wgsl"),
                    (true, true, false) => shader!("shared/keys_pair_vec4.wgsl"),
                    (true, false, false) => shader!("shared/keys_pair_word.wgsl"),
                },
            ]
            .concat(),
        }
    }

    pub(crate) fn layout(&self) -> LayoutKind {
        match self {
            Self::KeyNorm { paged, .. } | Self::ValueKeyRatio { paged, .. } => LayoutKind::score(false, *paged),
            Self::KeyDiff { paged, .. } => LayoutKind::score(true, *paged),
            Self::External => LayoutKind::KeyNorm,
            Self::Row { apart: false, .. } => LayoutKind::Row,
            Self::Row { apart: true, .. } => LayoutKind::RowApart,
            Self::FinishLayers { sixteen: false } => LayoutKind::FinishFour,
            Self::FinishLayers { sixteen: true } => LayoutKind::FinishSixteen,
            Self::Pages => LayoutKind::Pages,
            Self::Radix => LayoutKind::TopK,
            Self::Order => LayoutKind::Order,
            Self::Reserve => LayoutKind::Reserve,
            Self::Pool => LayoutKind::Pool,
            Self::Rotate { .. } => LayoutKind::Rotate,
            Self::Renumber => LayoutKind::Renumber,
            Self::State => LayoutKind::State,
            Self::Bitonic => LayoutKind::Bitonic,
            Self::Append => LayoutKind::Append,
            Self::Compact { values_vec4, paged, .. } => LayoutKind::compact(values_vec4.is_none(), *paged),
            Self::CompactBands { pair, .. } => LayoutKind::compact(!pair, false),
        }
    }
}

fn keys(vec4: bool) -> &'static str {
    if vec4 { shader!("shared/keys_vec4.wgsl") } else { shader!("shared/keys_word.wgsl") }
}

/// Access to keys and their squares.
fn elements(dtype: Dtype, keys: &str) -> String {
    let access = if dtype.is_quantised() { shader!("shared/blocks.wgsl") } else { keys };
    [squares(dtype), access].concat()
}

fn squares(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => shader!("shared/element_f32.wgsl"),
        Dtype::F16 => shader!("shared/element_f16.wgsl"),
        Dtype::Bf16 => shader!("shared/element_bf16.wgsl"),
        Dtype::Q8_0 => shader!("shared/blocks_q8_0.wgsl"),
        Dtype::Q4_0 => shader!("shared/blocks_q4_0.wgsl"),
        Dtype::I8Scaled => shader!("shared/blocks_i8.wgsl"),
    }
}

fn unpacked(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => shader!("shared/unpack_f32.wgsl"),
        Dtype::F16 => shader!("shared/unpack_f16.wgsl"),
        Dtype::Bf16 => shader!("shared/unpack_bf16.wgsl"),
        // Plans refuse the scores that take elements one by one.
        Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => "",
    }
}

/// Norms of tokens, but for the sum over lanes where several take part.
fn norm_tokens(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Serial => shader!("shared/reduce_serial.wgsl"),
        _ => concat!(shader!("shared/reduced.wgsl"), shader!("shared/score_tokens.wgsl")),
    }
}

/// The sum over lanes.
fn reduce(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Subgroup => shader!("shared/reduce_subgroup.wgsl"),
        Reduction::Workgroup => shader!("shared/reduce_workgroup.wgsl"),
        Reduction::Serial => "",
    }
}

fn score_entry(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Subgroup => shader!("shared/score_subgroup.wgsl"),
        _ => shader!("shared/score_workgroup.wgsl"),
    }
}

fn row_entry(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Subgroup => shader!("shared/row_subgroup.wgsl"),
        _ => shader!("shared/row_workgroup.wgsl"),
    }
}
