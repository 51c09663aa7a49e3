//! Twin of `shaders/key_diff.wgsl`: order keys from the cosines of keys with the mean of the row's normalised keys, or from
//! their distances to the mean key.
//!
//! Only additions, subtractions and multiplications of f32, in a fixed order. Products that are added are exact for f16
//! and bf16 keys, or lose their last bit before, so that no compiler can change a result by fusing the two.

use super::compact::CacheRow;
use super::key_norm::{INFINITY_BITS, NAN_ORDER_KEY, Scored, add_lanes, elements, squared_norm};
use crate::criterion::Score;
use crate::policy::{Direction, Policy};
use crate::shape::TensorSpec;

/// Invocations of a workgroup: part of the definition, since they share a tile's tokens.
const WORKGROUP: u32 = 256;
/// Tiles `t`, `t + SEGMENTS`, … are added in turn.
const SEGMENTS: usize = 64;
const TWO_BITS: u32 = 0x4000_0000;
/// 2⁻⁶⁰: elements of the sum below this count as zero.
const TINY: f32 = 8.673_617_4e-19;

/// Tokens whose keys are added up before tiles are.
#[must_use]
pub const fn sum_tile(spec: &TensorSpec) -> u32 {
    let round = WORKGROUP / spec.norm_lanes() * 4;
    round * 256_u32.div_ceil(round)
}

/// Without its last bit, as the shader makes it.
fn materialised(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & !1)
}

/// 1 / √x within 2⁻²⁰ relative, for normal x.
#[must_use]
pub fn inverse_sqrt(x: f32) -> f32 {
    let y = f32::from_bits(0x5f1f_fff9 - (x.to_bits() >> 1));
    let y = y * materialised(0.703_952_25 * materialised(2.389_244_6 - materialised(materialised(x * y) * y)));
    y * materialised(1.5 - 0.5 * materialised(materialised(x * y) * y))
}

/// To 13 significant bits.
fn rounded(x: f32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(0x400) & 0xffff_f800)
}

/// Inverse of a norm, 0 where the squared norm counts as zero.
fn inverse_norm(square: f32) -> f32 {
    if square < f32::MIN_POSITIVE { 0.0 } else { inverse_sqrt(square) }
}

/// One key as the score sees it: its elements, and its inverse norm unless it is not finite.
struct Key {
    elements: Vec<f32>,
    inverse: Option<f32>,
}

fn read_keys(spec: &TensorSpec, keys: &[u8]) -> Vec<Key> {
    let read = |key: &[u8]| Key {
        elements: key.chunks_exact(16).flat_map(|chunk| elements(spec.dtype, chunk)).collect(),
        inverse: squared_norm(spec, key).filter(|s| s.is_finite()).map(inverse_norm),
    };
    keys.chunks_exact(spec.row_bytes() as usize).map(read).collect()
}

/// The sum of the row's keys, each times its weight.
fn sum_keys(spec: &TensorSpec, keys: &[Key], weight: impl Fn(f32) -> f32) -> Vec<f32> {
    let tile = sum_tile(spec) as usize;
    let groups = (WORKGROUP / spec.norm_lanes()) as usize;
    let dim = spec.head_dim as usize;
    let add = |sum: &mut [f32], other: &[f32]| sum.iter_mut().zip(other).for_each(|(s, o)| *s += o);
    let mut segments = vec![vec![0.0; dim]; SEGMENTS];
    for (tile_ix, tokens) in keys.chunks(tile).enumerate() {
        let mut sums = vec![vec![0.0; dim]; groups];
        for (ix, key) in tokens.iter().enumerate() {
            let Some(weight) = key.inverse.map(&weight).filter(|w| *w != 0.0) else { continue };
            let products: Vec<f32> = key.elements.iter().map(|e| e * weight).collect();
            add(&mut sums[ix / 4 % groups], &products);
        }
        let mut total = sums[0].clone();
        sums[1..].iter().for_each(|group| add(&mut total, group));
        add(&mut segments[tile_ix % SEGMENTS], &total);
    }
    let mut distance = SEGMENTS / 2;
    while distance > 0 {
        let (low, high) = segments.split_at_mut(distance);
        low.iter_mut().zip(&*high).for_each(|(s, o)| add(s, o));
        distance /= 2;
    }
    segments.swap_remove(0)
}

/// Adds what each element of a key gives, `term(sum, element, element of the mean)`, lane by lane as the norm does.
fn lane_sum(spec: &TensorSpec, elements: &[f32], mean: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let lanes = spec.norm_lanes() as usize;
    let chunk_len = (16 / spec.dtype.size_bytes()) as usize;
    let mut sums = vec![0.0; lanes];
    for (ix, (&e, &m)) in elements.iter().zip(mean).enumerate() {
        let sum = &mut sums[ix / chunk_len % lanes];
        *sum = term(*sum, e, m);
    }
    add_lanes(&mut sums)
}

/// Cosine of each key of one row with the mean of its normalised keys, `None` for a key with a NaN or whose squared norm
/// overflows. Keys whose squared norm is below 2⁻¹²⁶ count as zero, of which the cosine is 0.
///
/// # Shapes
/// `keys`: densely packed tokens of [`TensorSpec::row_bytes`].
///
/// # Source
/// J. Park et al., "KeyDiff", <https://arxiv.org/abs/2504.15364>.
#[must_use]
pub fn cosines(spec: &TensorSpec, keys: &[u8]) -> Vec<Option<f32>> {
    let keys = read_keys(spec, keys);
    cosines_with(spec, &keys, &sum_keys(spec, &keys, rounded))
}

/// Cosines of keys with a sum of keys.
fn cosines_with(spec: &TensorSpec, keys: &[Key], sum: &[f32]) -> Vec<Option<f32>> {
    let mut mean: Vec<f32> = sum.iter().copied().map(rounded).collect();
    mean.iter_mut().filter(|m| m.abs() < TINY).for_each(|m| *m = 0.0);
    let inverse_mean = inverse_norm(lane_sum(spec, &mean, &mean, |sum, m, _| sum + materialised(m * m)));
    let cosine = |key: &Key| {
        let product = lane_sum(spec, &key.elements, &mean, |sum, e, m| sum + e * m);
        key.inverse.map(|inverse| materialised(materialised(product * inverse) * inverse_mean))
    };
    keys.iter().map(cosine).collect()
}

/// What a state keeps of a row with [`Policy::cached_norms`]: the sum of the normalised keys that it has seen, and the score
/// of each slot, found once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Running {
    /// Sum of the normalised keys seen so far; empty before the first.
    pub sum: Vec<f32>,
    /// Cosine of each slot's key with the mean when it was new.
    pub cosines: Vec<Option<f32>>,
}

impl Running {
    /// Adds the keys of a row that have no score yet, and scores them. `keys`: all of the row's, densely packed.
    pub fn update(&mut self, spec: &TensorSpec, keys: &[u8]) {
        let new = read_keys(spec, &keys[self.cosines.len() * spec.row_bytes() as usize..]);
        if new.is_empty() {
            return;
        }
        let sum = sum_keys(spec, &new, rounded);
        self.sum = if self.cosines.is_empty() { sum } else { sum.iter().zip(&self.sum).map(|(s, o)| s + o).collect() };
        self.cosines.extend(cosines_with(spec, &new, &self.sum));
    }

    /// Order keys of the row.
    #[must_use]
    pub fn order_keys(&self, policy: &Policy, row: &CacheRow) -> Scored {
        let order_key = |(slot, cosine): (u32, &Option<f32>)| match cosine {
            _ if row.is_protected(policy, slot) => 0,
            // Of 1 - cosine as of a norm, highest for lowest.
            Some(cosine) => {
                let bits = (1.0 - cosine).clamp(0.0, 2.0).to_bits();
                if policy.direction == Direction::Highest { bits + 1 } else { INFINITY_BITS - bits + 1 }
            }
            None => NAN_ORDER_KEY,
        };
        Scored {
            non_finite: self.cosines.iter().any(Option::is_none),
            order_keys: (0..).zip(&self.cosines).map(order_key).collect(),
        }
    }

    /// Scores move with their rows; the sum stays.
    pub fn finish(&mut self, selection: &super::top_k::Selection) {
        self.cosines = selection.sources.iter().map(|&source| self.cosines[source as usize]).collect();
    }
}

/// Squared distance of each key of one row to the mean of the row's keys, `None` for a key with a NaN or whose squared norm
/// overflows: such a key counts as a zero key in the mean. Overflow gives +Inf.
///
/// # Shapes
/// As [`cosines`].
///
/// # Source
/// `ManifoldKV` (PMLR 306), which keeps the highest.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a row has at most 2^20 tokens")]
pub fn distances(spec: &TensorSpec, keys: &[u8]) -> Vec<Option<f32>> {
    let keys = read_keys(spec, keys);
    let inverse = inverse_sqrt(keys.len().max(1) as f32);
    let sum = sum_keys(spec, &keys, |_| 1.0);
    let mean: Vec<f32> = sum.into_iter().map(|s| materialised(s * materialised(inverse * inverse))).collect();
    let distance = |key: &Key| {
        let square = lane_sum(spec, &key.elements, &mean, |sum, e, m| sum + materialised((e - m) * (e - m)));
        key.inverse.map(|_| square)
    };
    keys.iter().map(distance).collect()
}

/// Order key of a token whose cosine this is: from the bits of 1 - cosine, which spread well where keys are alike.
#[must_use]
pub fn cosine_key(direction: Direction, cosine: f32) -> u32 {
    let bits = (1.0 - cosine).clamp(0.0, 2.0).to_bits();
    if direction == Direction::Highest { bits + 1 } else { TWO_BITS - bits + 1 }
}

/// Order key of a token whose squared distance this is: from its bits.
#[must_use]
pub fn distance_key(direction: Direction, distance: f32) -> u32 {
    let bits = distance.to_bits().min(INFINITY_BITS);
    if direction == Direction::Highest { INFINITY_BITS - bits + 1 } else { bits + 1 }
}

/// Order keys of the `row.len` keys of one row, densely packed, for [`Direction::Lowest`] and [`Direction::Highest`].
#[must_use]
pub fn score_row(policy: &Policy, row: &CacheRow, spec: &TensorSpec, keys: &[u8]) -> Scored {
    let keys = &keys[..row.len as usize * spec.row_bytes() as usize];
    let (scores, key_of): (_, fn(Direction, f32) -> u32) = match policy.score {
        Score::Centroid => (distances(spec, keys), distance_key),
        _ => (cosines(spec, keys), cosine_key),
    };
    let order_key = |(slot, score): (u32, &Option<f32>)| match score {
        _ if row.is_protected(policy, slot) => 0,
        Some(score) => key_of(policy.direction, *score),
        None => NAN_ORDER_KEY,
    };
    Scored { non_finite: scores.iter().any(Option::is_none), order_keys: (0..).zip(&scores).map(order_key).collect() }
}
