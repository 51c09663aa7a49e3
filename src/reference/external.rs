//! Twin of `shaders/external.wgsl`: order keys from the caller's scores.

use super::compact::CacheRow;
use super::key_norm::{NAN_ORDER_KEY, Scored};
use crate::criterion::ExternalScore;
use crate::policy::{Direction, Policy};

/// Rank of -infinity's bits turned over: the lowest of all scores.
const LOWEST: u32 = 0x007f_ffff;
/// Rank of +infinity.
const HIGHEST_RANK: u32 = 0xff80_0000 - LOWEST;
const SIGN: u32 = 0x8000_0000;

/// Order key of an unprotected token whose score has these bits.
#[must_use]
pub fn order_key(kind: ExternalScore, direction: Direction, word: u32) -> u32 {
    let highest = direction == Direction::Highest;
    if kind == ExternalScore::OrderKeys {
        let key = word.min(NAN_ORDER_KEY);
        return if highest && key != 0 { u32::MAX - key } else { key };
    }
    if f32::from_bits(word).is_nan() {
        return NAN_ORDER_KEY;
    }
    let bits = if word == SIGN { 0 } else { word };
    let rank = if bits >= SIGN { !bits } else { bits | SIGN } - LOWEST;
    if highest { HIGHEST_RANK - rank + 1 } else { rank + 1 }
}

/// Order keys of the `row.len` tokens of one row, whose scores are the words of `scores`.
#[must_use]
pub fn score_row(policy: &Policy, kind: ExternalScore, row: &CacheRow, scores: &[u32]) -> Scored {
    let is_nan = |word: u32| kind == ExternalScore::F32 && f32::from_bits(word).is_nan();
    let tokens = || (0..row.len).zip(scores.iter().copied());
    let order_key = |(slot, word)| {
        if row.is_protected(policy, slot) { 0 } else { order_key(kind, policy.direction, word) }
    };
    Scored { non_finite: tokens().any(|t| is_nan(t.1)), order_keys: tokens().map(order_key).collect() }
}
