//! The text of shader modules: which files each is made of.

use crate::module::{Module, Reduction, Tokens};
use crate::shape::Dtype;

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!("../shaders/", $path))
    };
}

impl Module {
    /// WGSL text: the kernel's file first, so that line numbers in messages are its own.
    #[must_use]
    pub fn source(&self) -> String {
        self.source_by(false)
    }

    /// As [`Module::source`]; with `wide` 16-byte accesses are by 64-bit words, which takes `SHADER_INT64`.
    #[must_use]
    pub fn source_by(&self, wide: bool) -> String {
        let wide_keys = |vec4| if wide && vec4 { shader!("shared/keys_u64.wgsl") } else { keys(vec4) };
        let address = |tokens| match tokens {
            Tokens::Strided => concat!(shader!("shared/address_strided.wgsl"), shader!("shared/layer_one.wgsl")),
            Tokens::Arrays => concat!(shader!("shared/address_strided.wgsl"), shader!("shared/layer_arrays.wgsl")),
            Tokens::Paged => shader!("shared/address_paged.wgsl"),
        };
        let keys_by = |vec4, tokens| {
            if tokens == Tokens::Arrays { shader!("shared/keys_arrays.wgsl") } else { wide_keys(vec4) }
        };
        let layout = shader!("shared/state_layout.wgsl");
        let divided =
            if self.has_arrays() { shader!("shared/divided_by_all.wgsl") } else { shader!("shared/divided.wgsl") };
        let state = [layout, divided, shader!("shared/state_rows.wgsl")].concat();
        let state = state.as_str();
        let params = shader!("shared/top_k_params.wgsl");
        let digits = shader!("shared/first_digit.wgsl");
        let rule = concat!(shader!("shared/row_rule.wgsl"), shader!("shared/wide.wgsl"));
        let select_row = shader!("shared/select_row.wgsl");
        let rows = [params, shader!("shared/top_k_rows.wgsl"), select_row, rule].concat();
        let radix_row = shader!("shared/radix_row.wgsl");
        let scout = shader!("shared/scout.wgsl");
        let moves = concat!(shader!("shared/fill.wgsl"), shader!("shared/walk.wgsl"));
        let rows = rows.as_str();
        let order_key = shader!("shared/order_key.wgsl");
        let digit_counts = shader!("shared/digit_counts.wgsl");
        let note = shader!("shared/row_note.wgsl");
        let notes = concat!(shader!("shared/row_note.wgsl"), shader!("shared/note_row.wgsl"));
        let write_key = concat!(shader!("shared/write_key.wgsl"), shader!("shared/digit_counts.wgsl"));
        let score_rows = [shader!("shared/score_rows.wgsl"), notes, write_key].concat();
        let score_rows = score_rows.as_str();
        let info = shader!("shared/row_info.wgsl");
        let scan = scan_by(false);
        let stage = shader!("shared/top_k_emit.wgsl");
        let emit = concat!(shader!("shared/top_k_emit.wgsl"), shader!("shared/top_k_list.wgsl"));
        let recent = concat!(shader!("shared/wide.wgsl"), shader!("shared/recent.wgsl"));
        let whole_row = [
            shader!("shared/row_params.wgsl"),
            shader!("shared/whole_row.wgsl"),
            select_row,
            radix_row,
            scout,
            moves,
            digits,
            rule,
            shader!("shared/recent.wgsl"),
            order_key,
        ]
        .concat();
        let whole_row = whole_row.as_str();
        let moved_keys = |vec4, tokens| if vec4 { keys_by(true, tokens) } else { shader!("shared/keys_apart.wgsl") };
        let moved_values = |vec4, tokens| match (tokens, vec4) {
            (Tokens::Arrays, _) => shader!("shared/values_arrays.wgsl"),
            (_, true) if wide => shader!("shared/values_u64.wgsl"),
            (_, true) => shader!("shared/values_vec4.wgsl"),
            (_, false) => shader!("shared/values_apart.wgsl"),
        };
        match *self {
            Self::KeyNorm { dtype, vec4, reduction, tokens } => [
                enabled(tokens),
                shader!("key_norm.wgsl"),
                notes,
                write_key,
                digits,
                recent,
                order_key,
                state,
                address(tokens),
                elements(dtype, keys_by(vec4, tokens)).as_str(),
                norm_tokens(reduction),
                shader!("shared/score_tile.wgsl"),
                scout,
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
                address(Tokens::by_table(paged)),
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
                address(Tokens::by_table(paged)),
                elements(dtype, wide_keys(vec4)).as_str(),
                shader!("shared/inverse_sqrt.wgsl"),
                norm_tokens(reduction),
                shader!("shared/score_tile.wgsl"),
                scout,
                reduce(reduction),
                score_entry(reduction),
            ]
            .concat(),
            Self::External => {
                [shader!("external.wgsl"), score_rows, digits, recent, state, address(Tokens::Strided)].concat()
            }
            Self::Row { dtype, reduction, arrays } => [
                enabled(by_arrays(arrays)),
                shader!("row.wgsl"),
                whole_row,
                note,
                state,
                address(by_arrays(arrays)),
                moved_keys(true, by_arrays(arrays)),
                squares(dtype),
                moved_values(true, by_arrays(arrays)),
                stage,
                scan_by(reduction == Reduction::Subgroup),
                norm_tokens(reduction),
                reduce(reduction),
                row_entry(reduction),
            ]
            .concat(),
            Self::RowCached { subgroups, keys_vec4, values_vec4, arrays } => [
                enabled(by_arrays(arrays)),
                shader!("row_cached.wgsl"),
                whole_row,
                state,
                address(by_arrays(arrays)),
                moved_keys(keys_vec4, by_arrays(arrays)),
                moved_values(values_vec4, by_arrays(arrays)),
                stage,
                scan_by(subgroups),
                if subgroups {
                    shader!("shared/row_cached_subgroup.wgsl")
                } else {
                    shader!("shared/row_cached_workgroup.wgsl")
                },
            ]
            .concat(),
            Self::Radix { subgroups } => [
                shader!("radix.wgsl"),
                radix_row,
                scout,
                digits,
                rows,
                info,
                state,
                emit,
                scan_by(subgroups),
                if subgroups { shader!("shared/radix_subgroup.wgsl") } else { shader!("shared/radix_workgroup.wgsl") },
            ]
            .concat(),
            Self::RadixLong { subgroups } => [
                shader!("radix_long.wgsl"),
                shader!("shared/aside.wgsl"),
                radix_row,
                scout,
                digits,
                rows,
                info,
                state,
                emit,
                scan_by(subgroups),
                if subgroups {
                    shader!("shared/radix_long_subgroup.wgsl")
                } else {
                    shader!("shared/radix_long_workgroup.wgsl")
                },
            ]
            .concat(),
            Self::Bitonic => [shader!("bitonic.wgsl"), rows, info, state, scan, emit].concat(),
            Self::Order => [shader!("order.wgsl"), order_key, digit_counts, digits, recent, state].concat(),
            Self::Reserve => [shader!("reserve.wgsl"), params, state, scan].concat(),
            Self::Pool => [shader!("pool.wgsl"), params, rule, info, layout, scan].concat(),
            Self::Rotate { dtype } => [
                shader!("rotate.wgsl"),
                match dtype {
                    Dtype::F32 => shader!("shared/pair_f32.wgsl"),
                    Dtype::F16 => shader!("shared/pair_f16.wgsl"),
                    Dtype::Bf16 => shader!("shared/pair_bf16.wgsl"),
                    Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => "", // refused
                },
                state,
                shader!("shared/longest_row.wgsl"),
                shader!("shared/wide.wgsl"),
            ]
            .concat(),
            Self::Renumber => [shader!("renumber.wgsl"), layout, shader!("shared/longest_row.wgsl")].concat(),
            Self::State => [shader!("state.wgsl"), params, info, layout, divided].concat(),
            Self::Append => [shader!("append.wgsl"), layout].concat(),
            Self::Pages => [shader!("pages.wgsl"), layout].concat(),
            Self::Compact { keys_vec4, values_vec4, tokens } => [
                enabled(tokens),
                shader!("compact.wgsl"),
                moves,
                info,
                divided,
                address(tokens),
                moved_keys(keys_vec4, tokens),
                match values_vec4 {
                    None if keys_vec4 => shader!("shared/values_joined.wgsl"),
                    None => shader!("shared/values_joined_apart.wgsl"),
                    Some(vec4) => moved_values(vec4, tokens),
                },
            ]
            .concat(),
            Self::CompactBands { vec4, pair } => [
                shader!("compact_bands.wgsl"),
                info,
                divided,
                address(Tokens::Strided),
                match (pair, vec4) {
                    (false, true) => wide_keys(true),
                    (false, false) => shader!("shared/keys_apart.wgsl"),
                    (true, true) => shader!("shared/keys_pair_vec4.wgsl"),
                    (true, false) => shader!("shared/keys_pair_apart.wgsl"),
                },
            ]
            .concat(),
        }
    }
}

/// wgpu's extension of WGSL, before all else and on the first line, so that the kernel's lines keep their numbers.
const ENABLE_ARRAYS: &str = "enable wgpu_binding_array; ";

fn by_arrays(arrays: bool) -> Tokens {
    if arrays { Tokens::Arrays } else { Tokens::Strided }
}

fn enabled(tokens: Tokens) -> &'static str {
    if tokens == Tokens::Arrays { ENABLE_ARRAYS } else { "" }
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
        Dtype::F8E4M3 => concat!(shader!("shared/element_f8.wgsl"), shader!("shared/f8_e4m3.wgsl")),
        Dtype::F8E5M2 => concat!(shader!("shared/element_f8.wgsl"), shader!("shared/f8_e5m2.wgsl")),
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
        Dtype::F8E4M3 | Dtype::F8E5M2 => shader!("shared/unpack_f8.wgsl"),
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

/// Prefix sums over a workgroup.
fn scan_by(subgroups: bool) -> &'static str {
    if subgroups { shader!("shared/scan_subgroup.wgsl") } else { shader!("shared/scan.wgsl") }
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
