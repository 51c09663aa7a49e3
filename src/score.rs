//! Scores that take more than one pass over the keys: their parameters, scratch and pipelines.

use crate::draft::Builder;
use crate::kernel::{Access, Checks, Module};
use crate::params::{KeyNormParams, ScoreParams};
use crate::plan::WORKGROUP;
use crate::policy::{Direction, Policy, Score};
use crate::reference::key_diff::sum_tile;
use crate::shape::KvShape;
use crate::workspace::ScratchLayout;

/// Bits of 2.0, the largest 1 - cosine.
const TWO_BITS: u32 = 0x4000_0000;
const INFINITY_BITS: u32 = 0x7f80_0000;
/// Words of a vector of the shaders.
const QUAD: u32 = 4;

/// The dispatches before a score that needs a sum over the row.
#[derive(Debug)]
pub(crate) struct SumPipelines {
    sum_keys: wgpu::ComputePipeline,
    add_tiles: wgpu::ComputePipeline,
    /// Tokens a workgroup of `sum_keys` adds.
    tile: u32,
    /// Workgroups of `add_tiles` a row.
    parts: u32,
}

impl SumPipelines {
    /// The bind group is set.
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32, num_rows: u32) {
        pass.set_pipeline(&self.sum_keys);
        pass.dispatch_workgroups(max_len.div_ceil(self.tile), num_rows, 1);
        pass.set_pipeline(&self.add_tiles);
        pass.dispatch_workgroups(self.parts, num_rows, 1);
    }
}

impl Builder<'_> {
    /// The module of the policy's score, and the constants that only it has.
    pub(crate) fn score_module(&self, access: Access, constants: &mut Vec<(&'static str, f64)>) -> Module {
        let keys = &self.plan.shape.keys;
        let (dtype, vec4) = (keys.dtype, access == Access::Vec4);
        let reduction = self.kernels().capabilities.reduction(keys.lanes());
        match self.plan.policy.score_in_use() {
            Score::KeyNorm => Module::KeyNorm { dtype, vec4, reduction },
            score @ (Score::KeyDiff | Score::Centroid) => {
                constants.push(("SUM_TILE", sum_tile(keys).into()));
                constants.push(("CENTROID", f64::from(u8::from(score == Score::Centroid))));
                Module::KeyDiff { dtype, vec4, reduction }
            }
        }
    }

    pub(crate) fn sum_pipelines(&self, access: Access, checks: &mut Checks) -> Option<SumPipelines> {
        if self.plan.policy.score_in_use() == Score::KeyNorm {
            return None;
        }
        let keys = &self.plan.shape.keys;
        let mut constants = vec![
            ("WG_SIZE", f64::from(WORKGROUP)),
            ("LANES", f64::from(keys.lanes())),
            ("CHUNKS", f64::from(keys.chunks())),
        ];
        let module = self.score_module(access, &mut constants);
        let mut pipeline = |entry| self.kernels().pipeline(module, entry, &constants, checks);
        Some(SumPipelines {
            sum_keys: pipeline("sum_keys"),
            add_tiles: pipeline("add_tiles"),
            tile: sum_tile(keys),
            parts: keys.head_dim.div_ceil(16),
        })
    }
}

/// Words between rows of the sums of keys and from a row's first tile to its whole sum; 0 where the score needs none.
pub(crate) fn sums_layout(shape: &KvShape, policy: &Policy) -> (u32, u32) {
    match policy.score_in_use() {
        Score::KeyNorm => (0, 0),
        Score::KeyDiff | Score::Centroid => {
            let offset = shape.capacity.div_ceil(sum_tile(&shape.keys)) * shape.keys.head_dim;
            ((offset + shape.keys.head_dim).next_multiple_of(64), offset)
        }
    }
}

/// The parameters of the norm, in the form of the other scores.
pub(crate) fn score_params(norm: &KeyNormParams, policy: &Policy, scratch: &ScratchLayout) -> ScoreParams {
    ScoreParams {
        state: norm.state,
        num_rows: norm.num_rows,
        first_row: norm.first_row,
        layer: norm.layer,
        order_stride: norm.order_stride,
        batch_stride: norm.batch_stride,
        head_stride: norm.head_stride,
        token_stride: norm.token_stride,
        base: norm.base,
        first_sequence: norm.first_sequence,
        complement: complement(policy),
        sums_stride: scratch.sums_stride / QUAD,
        sums_offset: scratch.sums_offset / QUAD,
        sinks: norm.sinks,
        recent: norm.recent,
        share_low: norm.share_low,
        share_high: norm.share_high,
        histogram_stride: norm.histogram_stride,
        digit_shift: norm.digit_shift,
        digit_base: norm.digit_base,
        pad0: 0,
    }
}

/// The bits from which those of a score are subtracted, so that low keys are what is kept; 0: they are low already.
fn complement(policy: &Policy) -> u32 {
    match (policy.score_in_use(), policy.direction) {
        // The bits are those of 1 - cosine.
        (Score::KeyDiff, Direction::Lowest) => TWO_BITS,
        (Score::KeyDiff, _) | (_, Direction::Lowest) => 0,
        _ => INFINITY_BITS,
    }
}

/// (shift, base) of the window of first digits: 128 bins an octave over squared norms from 2^-1 to 2^15, or their
/// complements; 256 an octave over 1 - cosine from 2^-7 to 2; random keys are uniform over 31 bits.
pub(crate) fn digit_window(policy: &Policy) -> (u32, u32) {
    const LOWEST: u32 = (127 - 1) << 7;
    const INFINITY: u32 = INFINITY_BITS >> 16;
    match (policy.score_in_use(), policy.direction) {
        (_, Direction::Random { .. }) => (20, 0),
        (Score::KeyDiff, Direction::Lowest) => (15, 0),
        (Score::KeyDiff, _) => (15, (TWO_BITS >> 15) - 2048),
        (_, Direction::Lowest) => (16, LOWEST),
        _ => (16, INFINITY - LOWEST - 2048),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;

    #[test]
    fn windows_hold_what_they_say() {
        let policy = |direction| Policy { direction, ..Policy::keydiff(Budget::keep_ratio(0.5)) };
        let digit = |direction, distance: f32| {
            let policy = policy(direction);
            let (shift, base) = digit_window(&policy);
            let key = match complement(&policy) {
                0 => distance.to_bits() + 1,
                bits => bits - distance.to_bits() + 1,
            };
            i64::from(key >> shift) - i64::from(base)
        };
        assert_eq!(digit(Direction::Lowest, 2.0), 0, "the least cosine begins the window");
        assert_eq!(digit(Direction::Lowest, 0.007_812_6), 2047, "1 - cosine of 2^-7 ends it");
        assert_eq!(digit(Direction::Highest, 0.007_812_6), 0, "and begins that of the highest");
        assert_eq!(digit(Direction::Highest, 1.999_999), 2047, "which the least ends");
    }
}
