//! How a positional compaction of few long rows goes on after its first walk: by ranges, each moved at once.

use crate::draft::word;

/// What ranges may follow a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeRule {
    /// Ranks that the first walk may take, falling.
    pub walk_lens: &'static [u32],
    /// Most ranges of a row.
    pub most: u32,
    serial: bool,
}

impl RangeRule {
    /// Words of a row among the starts of ranges, as compact.wgsl has it.
    pub const STARTS: u32 = 64;
    /// Workgroups from which on a walk takes no longer than its bytes.
    const FULL: u32 = 90;

    pub const fn of(serial: bool) -> Self {
        let (walk_lens, most): (&[u32], u32) =
            if serial { (&[1024], 40) } else { (&[32_768, 16_384, 8192, 4096, 2048, 1024], 32) };
        assert!(most < Self::STARTS, "each range leaves its end for the next");
        Self { walk_lens, most, serial }
    }

    /// Whether ranges may follow a walk of so many workgroups.
    pub const fn may_follow(self, workgroups: u32) -> bool {
        self.serial || workgroups < Self::FULL
    }

    /// What a walk's tile costs beside its bytes, which ranges have to move as well, where a range costs 1. The more
    /// workgroups walk, the more of its time is the bytes'. The narrower their slices, the longer are tiles. On a CPU a walk
    /// costs a rank about three times what a range does, and a dispatch next to nothing. See `benches/record`.
    fn tile_cost(self, walk: Walk) -> f64 {
        if self.serial {
            return f64::from(walk.tile) / 128.0;
        }
        ((f64::from(Self::FULL) - f64::from(walk.workgroups)) / 18.0 * f64::from(walk.tile) / 8192.0).clamp(0.0, 1.0)
    }

    /// `walk_len` and `range_ix` of each block of parameters, in order: after that of a walk alone come, for each length, those
    /// of the first walk and of the first range; then of the other ranges, which depend on no length.
    pub fn blocks(self) -> impl Iterator<Item = (u32, u32)> {
        let of_len = |&walk_len: &u32| [(walk_len, u32::MAX), (walk_len, 0)];
        let others = (1..=self.most).map(|range_ix| (u32::MAX, range_ix));
        std::iter::once((u32::MAX, u32::MAX)).chain(self.walk_lens.iter().flat_map(of_len)).chain(others)
    }

    /// The block of a first walk.
    pub const fn walk_block(walk_ix: u32) -> u32 {
        1 + 2 * walk_ix
    }

    /// The block of a range, or of the walk that takes its place at the end.
    pub fn range_block(self, walk_ix: u32, range_ix: u32) -> u32 {
        match range_ix {
            0 => Self::walk_block(walk_ix) + 1,
            _ => 2 * word(self.walk_lens.len() as u64) + range_ix,
        }
    }
}

/// The ranges by which a positional compaction goes on after its first walk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranges {
    pub count: u32,
    /// Which of the rule's lengths the first walk has.
    pub walk_ix: u32,
    walk_len: u32,
    max_budget: u32,
    /// Expected ratio of a range's end to its start: rows are thinned by the keep ratio.
    growth: f64,
}

impl Ranges {
    /// Expected ranks of a range; its dispatch goes round for more.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating estimate of a grid")]
    pub fn len(self, ix: u32) -> u32 {
        let start = f64::from(self.walk_len) * self.growth.powi(ix.cast_signed());
        let left = f64::from(self.max_budget) - start;
        (start * (self.growth - 1.0)).min(left).clamp(1.0, f64::from(crate::MAX_CAPACITY)) as u32
    }
}

/// A walk alone: what it has to do, and by how much at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    pub max_len: u32,
    /// Most ranks of a row.
    pub max_budget: u32,
    /// As many of 1024 invocations.
    pub workgroups: u32,
    /// Ranks that a workgroup takes at a time.
    pub tile: u32,
}

/// The ranges that cost the least with their first walk, or `None` where a walk alone does.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn ranges(walk: Walk, rule: RangeRule) -> Option<Ranges> {
    let Walk { max_len, max_budget, tile, .. } = walk;
    if max_budget >= max_len || !rule.may_follow(walk.workgroups) {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    let rank_cost = rule.tile_cost(walk) / f64::from(tile);
    let mut least = f64::from(max_budget) * rank_cost;
    let mut best = None;
    for (walk_ix, &walk_len) in (0..).zip(rule.walk_lens).filter(|w| *w.1 < max_budget) {
        let all = ((f64::from(max_budget) / f64::from(walk_len)).ln() / growth.ln()).ceil().max(1.0) as u32;
        // The last walk may take what a last range would have little of.
        for count in [all.saturating_sub(1).max(1), all].into_iter().filter(|&count| count <= rule.most) {
            let left = f64::from(max_budget) - f64::from(walk_len) * growth.powi(count.cast_signed());
            let cost = (f64::from(walk_len) + left.max(0.0)) * rank_cost + f64::from(count);
            if cost < least {
                least = cost;
                best = Some(Ranges { count, walk_ix, walk_len, max_budget, growth });
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges, and ranks of the first walk.
    fn of(walk: Walk) -> Option<(u32, u32)> {
        ranges(walk, RangeRule::of(false)).map(|r| (r.count, r.walk_len))
    }

    #[test]
    fn walks_are_as_long_as_pays() {
        let walk = |max_len, max_budget| Walk { max_len, max_budget, workgroups: 64, tile: 2048 };
        assert_eq!(of(walk(131_072, 65_536)), Some((3, 8192)));
        assert_eq!(of(walk(131_072, 39_322)), Some((2, 4096)));
        assert_eq!(of(walk(131_072, 13_108)), Some((1, 2048)));
        assert_eq!(of(walk(131_072, 117_965)), Some((12, 32_768)));
        assert_eq!(of(walk(16_384, 8192)), None, "a walk alone");
        assert_eq!(of(walk(20_000, 20_000)), None, "nothing moves");
        assert_eq!(of(Walk { workgroups: 128, ..walk(131_072, 65_536) }), None, "a walk that fills the card");
        let ranges = ranges(walk(131_072, 13_108), RangeRule::of(false)).expect("ranges");
        assert_eq!(ranges.len(0), 13_108 - 2048, "no longer than what is left");
    }

    #[test]
    fn few_workgroups_are_worth_many_ranges() {
        let of = |max_len, max_budget, workgroups| of(Walk { max_len, max_budget, workgroups, tile: 4096 });
        assert_eq!(of(1_048_576, 838_860, 16), Some((18, 16_384)));
        assert_eq!(of(1_048_576, 943_718, 16), Some((32, 32_768)));
        assert_eq!(of(1_048_576, 1_000_000, 16), None, "more ranges than there are parameters for");
        assert_eq!(of(262_144, 209_715, 64), Some((9, 32_768)));
    }

    #[test]
    fn cpus_take_ranges_after_one_length() {
        let walk = Walk { max_len: 32_768, max_budget: 16_384, workgroups: 2, tile: 8 };
        let ranges = ranges(walk, RangeRule::of(true)).expect("ranges");
        assert_eq!((ranges.count, ranges.walk_len), (4, 1024));
        let many = Walk { workgroups: 1000, ..walk };
        assert_eq!(super::ranges(many, RangeRule::of(true)), Some(ranges), "however many walks there are");
    }

    #[test]
    fn narrow_workgroups_count_by_their_invocations() {
        // Six rows of 256 bytes by slices of two, in 96 workgroups of 256 invocations.
        assert_eq!(of(Walk { max_len: 131_072, max_budget: 65_536, workgroups: 24, tile: 1024 }), Some((4, 4096)));
    }

    #[test]
    fn blocks_are_where_they_are_looked_for() {
        for rule in [false, true].map(RangeRule::of) {
            let blocks: Vec<_> = rule.blocks().collect();
            for (walk_ix, &walk_len) in (0..).zip(rule.walk_lens) {
                assert_eq!(blocks[RangeRule::walk_block(walk_ix) as usize], (walk_len, u32::MAX));
                assert_eq!(blocks[rule.range_block(walk_ix, 0) as usize], (walk_len, 0));
                assert_eq!(blocks[rule.range_block(walk_ix, rule.most) as usize], (u32::MAX, rule.most));
            }
            assert_eq!(blocks.len(), rule.range_block(0, rule.most) as usize + 1);
        }
    }
}
