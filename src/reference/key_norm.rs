//! Twin of `shaders/key_norm.wgsl`, `shaders/order.wgsl` and `shaders/reserve.wgsl`: order keys from squared key norms.

use half::{bf16, f16};

use super::compact::CacheRow;
use crate::policy::{Direction, Policy};
use crate::shape::{Dtype, TensorSpec};
use crate::state::Segment;

/// Order key of a key with a NaN element: after every norm, dropped first in every direction.
pub const NAN_ORDER_KEY: u32 = 0xffff_fffe;
pub(crate) const INFINITY_BITS: u32 = 0x7f80_0000;

/// Order keys of a row, and whether one of its keys was not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scored {
    /// One order key a token; lower is kept first; 0 is protected.
    pub order_keys: Vec<u32>,
    /// A key had a NaN element or an infinite squared norm.
    pub non_finite: bool,
}

/// Squared L2 norm of one key, `None` where an element is NaN.
///
/// The order of additions is part of the definition: with L = [`TensorSpec::norm_lanes`], lane j adds the squares of the
/// 16-byte chunks j, j + L, … element by element from left to right; then lanes are added at distances L/2 … 1.
///
/// Of quantised rows lane j adds, for its blocks of 32 elements in turn, the sum of the squared integers, which is exact,
/// times the squared scale, both products rounded to f32.
///
/// # Ties and NaN
/// NaN is tested on the bits of the input; a scale that is not finite makes its key count as NaN. Overflow gives +Inf.
#[must_use]
pub fn squared_norm(spec: &TensorSpec, key: &[u8]) -> Option<f32> {
    let lanes = spec.norm_lanes() as usize;
    let mut sums = vec![0.0_f32; lanes];
    let mut nan = false;
    if spec.dtype.is_quantised() {
        for (block_ix, (sum_of_squares, scale)) in blocks(spec.dtype, key).into_iter().enumerate() {
            nan |= !scale.is_finite();
            // A block of zeros adds nothing, whatever its scale.
            let product = if sum_of_squares == 0 { 0.0 } else { sum_of_squares as f32 * (scale * scale) };
            sums[block_ix % lanes] += product;
        }
    } else {
        for (chunk_ix, chunk) in key.chunks_exact(16).enumerate() {
            let sum = &mut sums[chunk_ix % lanes];
            for element in elements(spec.dtype, chunk) {
                nan |= element.is_nan();
                *sum += element * element;
            }
        }
    }
    let sum = add_lanes(&mut sums);
    (!nan).then_some(sum)
}

/// Adds the lanes of a token, at distances L/2 … 1.
pub(crate) fn add_lanes(sums: &mut [f32]) -> f32 {
    let mut distance = sums.len() / 2;
    while distance > 0 {
        for i in 0..distance {
            sums[i] += sums[i + distance];
        }
        distance /= 2;
    }
    sums[0]
}

/// The blocks of a quantised row: the sum of the squared quants, which is exact in f32 too, and the scale.
fn blocks(dtype: Dtype, key: &[u8]) -> Vec<(u32, f32)> {
    let squares_of_bytes = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b.cast_signed().unsigned_abs()).pow(2)).sum();
    let half = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_f32();
    match dtype {
        Dtype::Q8_0 => key.chunks_exact(34).map(|block| (squares_of_bytes(&block[2..]), half(block))).collect(),
        Dtype::Q4_0 => {
            let nibbles = |b: &u8| (u32::from(b & 15).abs_diff(8)).pow(2) + (u32::from(b >> 4).abs_diff(8)).pow(2);
            key.chunks_exact(18).map(|block| (block[2..].iter().map(nibbles).sum(), half(block))).collect()
        }
        _ => {
            let scale = f32::from_le_bytes([key[0], key[1], key[2], key[3]]);
            let scale = if scale.to_bits() & 0x7fff_ffff < 0x2000_0000 { 0.0 } else { scale };
            key[4..].chunks(32).map(|block| (squares_of_bytes(block), scale)).collect()
        }
    }
}

/// Elements of a chunk as the norm sees them: bf16 magnitudes below 2⁻⁶³ are zero, so that every square is exact.
pub(crate) fn elements(dtype: Dtype, chunk: &[u8]) -> Vec<f32> {
    let halves = || chunk.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => chunk.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => halves().map(|h| f16::from_bits(h).to_f32()).collect(),
        // By way of f16, whose subnormals reach further than theirs.
        Dtype::F8E4M3 => chunk.iter().map(|&b| e4m3(b)).collect(),
        Dtype::F8E5M2 => chunk.iter().map(|&b| f16::from_bits(u16::from(b) << 8).to_f32()).collect(),
        Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => Vec::new(), // they have blocks
        Dtype::Bf16 => halves().map(|h| if h & 0x7fff < 0x2000 { 0.0 } else { bf16::from_bits(h).to_f32() }).collect(),
    }
}

/// The exponent's bias is 7, where f16 has 15.
fn e4m3(byte: u8) -> f32 {
    let bits = u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7f) << 7;
    if byte & 0x7f == 0x7f { f32::NAN } else { f16::from_bits(bits).to_f32() * 256.0 }
}

/// Order key of an unprotected token.
#[must_use]
pub fn order_key(direction: Direction, norm: Option<f32>, layer: u32, row: u32, position: u32) -> u32 {
    let Some(norm) = norm else { return NAN_ORDER_KEY };
    let bits = norm.to_bits().min(INFINITY_BITS);
    match direction {
        Direction::Lowest => bits + 1,
        Direction::Highest => INFINITY_BITS - bits + 1,
        Direction::Random { seed } => random_bits(seed, layer, row, position) + 1,
    }
}

/// 31 bits of (seed, layer, row, original position): the finaliser of `MurmurHash3` (A. Appleby, public domain), a round
/// for each word.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the two words of the seed")]
pub const fn random_bits(seed: u64, layer: u32, row: u32, position: u32) -> u32 {
    let h = mix(seed as u32 ^ 0x9e37_79b9);
    let h = mix(h ^ (seed >> 32) as u32);
    let h = mix(h ^ layer.wrapping_mul(0x85eb_ca6b));
    let h = mix(h ^ row.wrapping_mul(0xc2b2_ae35));
    mix(h ^ position) >> 1
}

const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Order keys of the `row.len` keys of one row, densely packed, whatever the score of the policy.
#[must_use]
pub fn score_row(
    policy: &Policy,
    layer: u32,
    row_index: u32,
    row: &CacheRow,
    spec: &TensorSpec,
    keys: &[u8],
) -> Scored {
    let mut scored = Scored { order_keys: Vec::with_capacity(row.len as usize), non_finite: false };
    for (slot, key) in (0..row.len).zip(keys.chunks_exact(spec.row_bytes() as usize)) {
        let norm = squared_norm(spec, key);
        scored.non_finite |= norm.is_none_or(f32::is_infinite);
        let position = row.position_of(slot);
        scored.order_keys.push(if row.is_protected(policy, slot) {
            0
        } else {
            order_key(policy.direction, norm, layer, row_index, position)
        });
    }
    scored
}

/// Protects what the segments keep in any case: of each, its lowest tokens by (order key, slot).
pub fn reserve(order_keys: &mut [u32], row: &CacheRow, segments: &[Segment]) {
    for segment in segments {
        let slots = (0..row.len).filter(|&slot| segment.positions.contains(&row.position_of(slot)));
        let mut members: Vec<(u32, usize)> = slots.map(|s| s as usize).map(|s| (order_keys[s], s)).collect();
        members.sort_unstable();
        for &(_, slot) in members.iter().take(segment.min_tokens as usize) {
            order_keys[slot] = 0;
        }
    }
}
