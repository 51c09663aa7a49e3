//! Scalar CPU twins of the kernels. They are the semantics: what a kernel does is what its twin does, bit for bit.
//!
//! One twin a stage, with the kernel's name: [`key_norm`] (keys → order keys), [`budget`] (order keys → tokens kept),
//! [`top_k`] (order keys → threshold and slots), [`compact`](mod@compact) (slots → rows moved, state updated).
//! [`compress_row`] is all of them in a row.

pub mod budget;
pub mod compact;
pub mod key_norm;
pub mod top_k;

use crate::policy::Policy;
use crate::shape::TensorSpec;
pub use compact::CacheRow;

/// Compresses one row of one layer in place: `keys` and `values` hold `row.len` tokens of `spec.row_bytes()` each, densely
/// packed. Returns whether a key was not finite. A row alone has neither pool nor segments, and overrides take its index
/// for the head.
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
    let scored = key_norm::score_row(policy, layer, row_index, row, keys_spec, keys);
    let rule = policy.rule_of(layer, row_index)?;
    let selection = top_k::keep(&scored.order_keys, budget::row_budget(&rule, &scored.order_keys), policy.order);
    compact::move_rows(&selection, keys_spec.row_bytes() as usize, keys);
    compact::move_rows(&selection, values_spec.row_bytes() as usize, values);
    row.finish(&selection);
    Ok(scored.non_finite)
}
