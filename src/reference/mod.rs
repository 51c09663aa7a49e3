//! Scalar CPU twins of the kernels. They are the semantics: what a kernel does is what its twin does, bit for bit.
//!
//! One twin a stage, with the kernel's name: [`key_norm`] and [`key_diff`] (keys → order keys), [`top_k`] (order keys → threshold and
//! slots), [`compact`](mod@compact) (slots → rows moved, state updated). [`compress_row`] is the three in a row.

pub mod compact;
pub mod key_diff;
pub mod key_norm;
pub mod top_k;

use crate::policy::{Policy, Score};
use crate::shape::TensorSpec;
pub use compact::CacheRow;

/// Order keys of one row by the policy's score: `keys` holds `row.len` tokens of `spec.row_bytes()` each, densely packed.
#[must_use]
pub fn score_row(
    policy: &Policy,
    layer: u32,
    row_index: u32,
    row: &CacheRow,
    spec: &TensorSpec,
    keys: &[u8],
) -> key_norm::Scored {
    match policy.score_in_use() {
        Score::KeyNorm => key_norm::score_row(policy, layer, row_index, row, spec, keys),
        Score::KeyDiff | Score::Centroid => key_diff::score_row(policy, row, spec, keys),
    }
}

/// Compresses one row of one layer in place: `keys` and `values` hold `row.len` tokens of `spec.row_bytes()` each, densely
/// packed. Returns whether a key was not finite.
///
/// # Errors
/// As [`Policy::check`] for the budget.
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
) -> Result<bool, crate::ArgumentError> {
    let scored = score_row(policy, layer, row_index, row, keys_spec, keys);
    let selection = top_k::select(&scored.order_keys, &policy.budget, policy.order)?;
    compact::move_rows(&selection, keys_spec.row_bytes() as usize, keys);
    compact::move_rows(&selection, values_spec.row_bytes() as usize, values);
    row.finish(&selection);
    Ok(scored.non_finite)
}
