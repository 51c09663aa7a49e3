//! Twin of `shaders/value_key_ratio.wgsl`: order keys from the ratio of a value's norm to its key's.

use super::compact::CacheRow;
use super::key_diff::{distance_key, inverse_sqrt};
use super::key_norm::{NAN_ORDER_KEY, Scored, squared_norm};
use crate::policy::Policy;
use crate::shape::TensorSpec;

/// Products below the smallest normal number count as zero.
fn without_subnormals(x: f32) -> f32 {
    if x < f32::MIN_POSITIVE { 0.0 } else { x }
}

/// Squared ratio of the norms of one token's value and key: `None` where one of them has a NaN or a squared norm that
/// overflows; +Inf where the squared norm of the key is below 2⁻¹²⁶.
///
/// # Source
/// `PagedEviction`, <https://arxiv.org/abs/2509.04377>, which keeps the highest.
#[must_use]
pub fn squared_ratio(keys_spec: &TensorSpec, key: &[u8], values_spec: &TensorSpec, value: &[u8]) -> Option<f32> {
    let key = squared_norm(keys_spec, key).filter(|s| s.is_finite())?;
    let value = squared_norm(values_spec, value).filter(|s| s.is_finite())?;
    if key < f32::MIN_POSITIVE {
        return Some(f32::INFINITY);
    }
    let inverse = inverse_sqrt(key);
    Some(without_subnormals(without_subnormals(without_subnormals(value) * inverse) * inverse))
}

/// Order keys of the `row.len` tokens of one row, keys and values densely packed, for
/// [`Direction::Lowest`](crate::Direction::Lowest) and [`Direction::Highest`](crate::Direction::Highest).
#[must_use]
pub fn score_row(policy: &Policy, row: &CacheRow, keys: (&TensorSpec, &[u8]), values: (&TensorSpec, &[u8])) -> Scored {
    let tokens = |(spec, bytes): (&TensorSpec, &[u8])| -> Vec<Vec<u8>> {
        bytes.chunks_exact(spec.row_bytes() as usize).take(row.len as usize).map(<[u8]>::to_vec).collect()
    };
    let (key_rows, value_rows) = (tokens(keys), tokens(values));
    let ratios: Vec<_> = key_rows.iter().zip(&value_rows).map(|(k, v)| squared_ratio(keys.0, k, values.0, v)).collect();
    let order_key = |(slot, ratio): (u32, &Option<f32>)| match ratio {
        _ if row.is_protected(policy, slot) => 0,
        Some(ratio) => distance_key(policy.direction, *ratio),
        None => NAN_ORDER_KEY,
    };
    Scored { non_finite: ratios.iter().any(Option::is_none), order_keys: (0..).zip(&ratios).map(order_key).collect() }
}
