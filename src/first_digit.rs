//! What scores are subtracted from to become order keys, and the first digits of these, as shared/first_digit.wgsl has them.

use crate::criterion::{ExternalScore, Score};
use crate::policy::{Direction, Policy};

/// Bits of 2.0, the largest 1 - cosine.
const TWO_BITS: u32 = 0x4000_0000;
const INFINITY_BITS: u32 = 0x7f80_0000;
/// Of -infinity among ordered f32, and of +infinity from there.
const FIRST_RANK: u32 = 0x007f_ffff;
const HIGHEST_RANK: u32 = 0xff80_0000 - FIRST_RANK;

/// The bits from which those of a score are subtracted, so that low keys are what is kept; 0: they are low already.
pub(crate) fn complement(policy: &Policy) -> u32 {
    match (policy.score_in_use(), policy.direction) {
        // The bits are those of 1 - cosine.
        (Score::KeyDiff, Direction::Lowest) => TWO_BITS,
        (Score::KeyDiff, _) | (_, Direction::Lowest) => 0,
        (Score::External(ExternalScore::F32), _) => HIGHEST_RANK,
        // Order keys end at 0xFFFF_FFFE, and the shader counts them from 0.
        (Score::External(ExternalScore::OrderKeys), _) => 0xffff_fffd,
        _ => INFINITY_BITS,
    }
}

/// (shift, window) of first digits, as shared/first_digit.wgsl has them: 128 bins an octave over squared norms from 2^-1 to
/// 2^13 and their ratios from 2^-12 to 2^2, or their complements, and one bin to each other octave; 256 an octave over
/// 1 - cosine from 2^-6 (cached 2^-5) to 2, and two to each other; 32 an octave over positive f32 scores of 60 octaves, from
/// 2^-30 or, of the highest, 2^-28, and one to each four others; random keys are uniform over 31 bits, the caller's over 32.
pub(crate) fn digit_window(policy: &Policy) -> (u32, u32) {
    const INFINITY: u32 = INFINITY_BITS >> 23;
    // Rank of the f32 that has these bits.
    let rank = |bits: u32| (1 << 31) + bits - FIRST_RANK;
    let lowest = match policy.score_in_use() {
        Score::ValueKeyRatio => 127 - 12,
        _ => 127 - 1,
    };
    // In wide bins. Those of the window and the others are at most all bins.
    let (shift, first, len) = match (policy.score_in_use(), policy.direction) {
        (_, Direction::Random { .. }) => (20, 0, 16),
        // What the state keeps is 1 - cosine, subtracted from infinity like a norm.
        (Score::KeyDiff, Direction::Lowest) if policy.cached_norms => (15, (INFINITY_BITS - TWO_BITS) >> 22, 12),
        (Score::KeyDiff, Direction::Lowest) => (15, 0, 14),
        (Score::KeyDiff, _) => (15, (TWO_BITS >> 22) - 14, 14),
        (Score::External(ExternalScore::F32), Direction::Lowest) => (18, rank((127 - 30) << 23) >> 25, 15),
        (Score::External(ExternalScore::F32), _) => (18, (HIGHEST_RANK - rank((127 + 30) << 23)) >> 25, 15),
        (Score::External(ExternalScore::OrderKeys), _) => (21, 0, 16),
        (_, Direction::Lowest) => (16, lowest, 14),
        _ => (16, INFINITY - lowest - 14, 14),
    };
    (shift, first | (len << 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;

    /// As shared/first_digit.wgsl has it, but for the clamp to the last bin.
    fn first_digit(key: u32, policy: &Policy) -> i64 {
        let (shift, window) = digit_window(policy);
        let bins = |wide_bins: u32| i64::from(wide_bins) * 127;
        let wide = i64::from(key >> (shift + 7));
        let narrow = i64::from(key >> shift) - bins(window & 0xffff);
        wide.max(narrow).min(wide + bins(window >> 16))
    }

    fn keydiff(direction: Direction) -> Policy {
        Policy { direction, ..Policy::keydiff(Budget::keep_ratio(0.5)) }
    }

    #[test]
    fn windows_hold_what_they_say() {
        let is_narrow = |policy: &Policy, score: f32| {
            let key = match complement(policy) {
                0 => score.to_bits() + 1,
                bits => bits - score.to_bits() + 1,
            };
            let (shift, _) = digit_window(policy);
            first_digit(key + (1 << shift), policy) == first_digit(key, policy) + 1
                && first_digit(key + (1 << shift) - 1, policy) <= first_digit(key, policy) + 1
        };
        let norms = |direction| Policy { direction, ..Policy::new(Budget::keep_ratio(0.5)) };
        for direction in [Direction::Lowest, Direction::Highest] {
            for (norm, expected) in [(0.45, false), (0.51, true), (8100.0, true), (8500.0, false)] {
                assert_eq!(is_narrow(&norms(direction), norm), expected, "{direction:?} {norm}");
            }
            for (distance, expected) in [(0.015, false), (0.0158, true), (1.99, true)] {
                assert_eq!(is_narrow(&keydiff(direction), distance), expected, "{direction:?} {distance}");
            }
        }
    }

    /// Only keys of NaN may lie beyond all bins.
    #[test]
    fn bins_are_enough() {
        let budget = || Budget::keep_ratio(0.5);
        let external = |score| Policy { score: Score::External(score), ..Policy::new(budget()) };
        let of_all = [
            Policy::new(budget()),
            Policy { score: Score::ValueKeyRatio, ..Policy::new(budget()) },
            external(ExternalScore::F32),
            keydiff(Direction::Lowest),
            Policy { cached_norms: true, ..keydiff(Direction::Lowest) },
        ];
        for policy in of_all {
            for direction in [Direction::Lowest, Direction::Highest] {
                let policy = Policy { direction, ..policy.clone() };
                let last = match policy.score {
                    Score::External(_) => HIGHEST_RANK + 1,
                    // Cached and complemented they are subtracted from infinity.
                    Score::KeyDiff if !policy.cached_norms || direction == Direction::Highest => TWO_BITS + 1,
                    _ => INFINITY_BITS + 1,
                };
                assert!((1..2047).contains(&first_digit(last, &policy)), "{policy:?}");
                assert_eq!(first_digit(0, &policy), 0, "{policy:?}");
            }
        }
        let random = Policy { direction: Direction::Random { seed: 1 }, ..Policy::new(budget()) };
        assert_eq!(first_digit((1 << 31) - 1, &random), 2047);
        assert_eq!(first_digit(u32::MAX, &external(ExternalScore::OrderKeys)), 2047);
    }
}
