//! Scalar CPU twins of the kernels. They are the semantics: what a kernel does is what its twin does, bit for bit.
//!
//! One twin a stage, with the kernel's name: [`key_norm`], [`key_diff`], [`value_key_ratio`] or [`external`] (tokens →
//! order keys), [`budget`] (order keys → tokens kept), [`top_k`] (order keys → threshold and slots),
//! [`compact`](mod@compact) (slots → rows moved, state updated). [`compress_row`] is all of them in a row.

pub mod budget;
pub mod compact;
pub mod external;
pub mod key_diff;
pub mod key_norm;
pub mod pages;
pub mod rotate;
pub mod top_k;
pub mod value_key_ratio;

use crate::criterion::Score;
use crate::error::ArgumentError;
use crate::policy::Policy;
use crate::shape::TensorSpec;
pub use compact::CacheRow;
use key_norm::Scored;

/// What a score may read of one row: `row.len` tokens, densely packed.
#[derive(Debug, Clone, Copy)]
pub struct RowTokens<'a> {
    /// Element type and head dimension of the keys.
    pub keys_spec: &'a TensorSpec,
    /// Keys, `keys_spec.row_bytes()` each.
    pub keys: &'a [u8],
    /// Element type and head dimension of the values.
    pub values_spec: &'a TensorSpec,
    /// Values, `values_spec.row_bytes()` each.
    pub values: &'a [u8],
    /// The caller's scores, a word each, for [`Score::External`]; else empty.
    pub scores: &'a [u32],
}

/// Order keys of row `row_index` of a layer by the policy's score.
///
/// # Errors
/// [`ArgumentError::WrongCount`] where a policy of external scores is given fewer of them than the row has tokens.
pub fn score_row(
    policy: &Policy,
    layer: u32,
    row_index: u32,
    row: &CacheRow,
    tokens: &RowTokens<'_>,
) -> Result<Scored, ArgumentError> {
    let RowTokens { keys_spec, keys, values_spec, values, scores } = *tokens;
    Ok(match policy.score_in_use() {
        Score::KeyNorm => key_norm::score_row(policy, layer, row_index, row, keys_spec, keys),
        Score::KeyDiff | Score::Centroid => key_diff::score_row(policy, row, keys_spec, keys),
        Score::ValueKeyRatio => value_key_ratio::score_row(policy, row, (keys_spec, keys), (values_spec, values)),
        Score::External(kind) => {
            if scores.len() < row.len as usize {
                let (got, expected) = (scores.len(), row.len as usize);
                return Err(ArgumentError::WrongCount { argument: "scores", got, expected });
            }
            external::score_row(policy, kind, row, scores)
        }
    })
}

/// Compresses one row of one layer in place: `keys` and `values` hold `row.len` tokens of `spec.row_bytes()` each, densely
/// packed. Returns whether a key was not finite. A row alone has neither pool nor segments, and overrides take its index
/// for the head.
///
/// # Errors
/// As [`Policy::check`] for the budget; a policy of external scores, for which [`score_row`] takes them.
#[expect(clippy::too_many_arguments, reason = "the row and its place, both tensors")]
pub fn compress_row(
    policy: &Policy,
    layer: u32,
    row_index: u32,
    row: &mut CacheRow,
    keys_spec: &TensorSpec,
    keys: &mut [u8],
    values_spec: &TensorSpec,
    values: &mut [u8],
) -> Result<bool, ArgumentError> {
    let tokens = RowTokens { keys_spec, keys, values_spec, values, scores: &[] };
    let scored = score_row(policy, layer, row_index, row, &tokens)?;
    let rule = policy.rule_of(layer, row_index)?;
    let selection = top_k::keep(&scored.order_keys, budget::row_budget(&rule, &scored.order_keys), policy.order);
    compact::move_rows(&selection, keys_spec.row_bytes() as usize, keys);
    compact::move_rows(&selection, values_spec.row_bytes() as usize, values);
    row.finish(&selection);
    Ok(scored.non_finite)
}
