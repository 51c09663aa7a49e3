//! How the score divides rows among workgroups, as shared/score_tile.wgsl has it.

use crate::criterion::Score;
use crate::plan::WORKGROUP;
use crate::policy::Policy;
use crate::reference::key_diff::sum_tile;
use crate::shape::{KvShape, TensorSpec};

/// Workgroups that take tiles of all rows, and the least and the most tokens for one of them.
const TAKERS: u32 = 1024;
const LEAST_TAKEN: u32 = 256;
const MOST_TAKEN: u32 = 4096;

/// Tokens of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoreTiles {
    pub plain: u32,
    /// With the histogram fused, a workgroup to a tile.
    fused: u32,
    /// With the histogram fused, where workgroups take tiles until none is left, as shared/score_tile.wgsl has it.
    taken: Option<u32>,
}

impl ScoreTiles {
    pub fn new(shape: &KvShape, policy: &Policy, serial: bool) -> Self {
        if policy.caches_sums() {
            // Whole tiles of the sums, so that what is summed and what is scored are the same tokens.
            let tile = sum_tile(&shape.keys);
            return Self { plain: tile, fused: tile, taken: None };
        }
        let plain = score_tile(&shape.keys, 128);
        // A histogram takes as long for few tokens as for many, which a CPU cannot hide.
        let fused = score_tile(&shape.keys, if serial { 4096 } else { 512 });
        let is_norm = matches!(policy.score_in_use(), Score::KeyNorm | Score::ValueKeyRatio);
        Self { plain, fused, taken: (is_norm && !serial).then_some(plain) }
    }

    /// Of rows that take several dispatches, which would count on from each other.
    pub const fn of_bands(self) -> Self {
        Self { taken: None, ..self }
    }

    /// Tokens of a tile, alone or with the histogram fused.
    pub fn of(self, fused: bool) -> u32 {
        if fused { self.taken.unwrap_or(self.fused) } else { self.plain }
    }

    /// Workgroups of a row. Those that take tiles are somewhat more than find room at once; but no more than have enough
    /// tokens to be worth their histogram, and no fewer than let the last of many rows end together. See benches/record.
    pub fn parts(self, fused: bool, max_len: u32, num_rows: u32) -> u32 {
        let tiles = max_len.div_ceil(self.of(fused));
        if !fused || self.taken.is_none() {
            return tiles;
        }
        let [least, most] = [MOST_TAKEN, LEAST_TAKEN].map(|tokens| max_len.div_ceil(tokens));
        tiles.min(TAKERS.div_ceil(num_rows).max(least).min(most))
    }
}

/// Tokens of a tile of the values, where their norms count.
pub(crate) fn values_tile(values: &TensorSpec) -> u32 {
    score_tile(values, 128)
}

/// Tokens a workgroup of the norm scores, about as many as wanted.
pub(crate) fn score_tile(spec: &TensorSpec, wanted: u32) -> u32 {
    let round = WORKGROUP / spec.norm_lanes() * 4;
    round * wanted.div_ceil(round)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_but_enough() {
        let tiles = ScoreTiles { plain: 128, fused: 512, taken: Some(128) };
        for (max_len, num_rows, expected) in [
            (1, 1, 1),
            (9000, 8, 36),
            (131_072, 1, 512),
            (131_072, 8, 128),
            (131_072, 4096, 32),
            (1 << 20, 1, 1024),
            (1 << 20, 8, 256),
        ] {
            assert_eq!(tiles.parts(true, max_len, num_rows), expected, "{num_rows} of {max_len}");
            assert_eq!(tiles.parts(false, max_len, num_rows), max_len.div_ceil(128));
            assert_eq!(tiles.of_bands().parts(true, max_len, num_rows), max_len.div_ceil(512));
        }
    }
}
