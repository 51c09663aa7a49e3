//! How a positional compaction of few long rows goes on after its first walk: by ranges, each moved at once.

/// When ranges follow a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeRule {
    /// Ranks that the first walk may take, falling.
    pub walk_lens: &'static [u32],
    /// The longest of them, but where that would leave too many ranges.
    pub usual: u32,
    /// Most ranges of a row.
    pub most: u32,
    /// Ranges up to which a walk alone is slower in any case.
    pub few: u32,
    /// Workgroups from which on a walk alone fills the device.
    pub full: u32,
}

impl RangeRule {
    /// On a CPU a walk costs a rank about three times what a range does, and a dispatch next to nothing.
    pub const fn of(serial: bool) -> Self {
        if serial {
            Self { walk_lens: &[1024], usual: 1024, most: 40, few: 40, full: u32::MAX }
        } else {
            Self { walk_lens: &[32_768, 8192, 4096, 2048, 1024], usual: 8192, most: 32, few: 8, full: 128 }
        }
    }

    /// Parameter blocks of a walk length: of the first walk, and of each place in the order of ranges.
    pub const fn blocks(self) -> u32 {
        self.most + 2
    }
}

/// Share of the budget that the last walk may find where ranges end as expected: one more range would cost more.
const LEFT_TO_WALK: f64 = 0.02;

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
    pub workgroups: u32,
    /// Ranks that a workgroup takes at a time.
    pub tile: u32,
}

impl Walk {
    /// Ranges that take as long as the walk: it takes one's time for a tile, but with many workgroups most of that is the
    /// bytes', which ranges have to move too. See `benches/record`.
    fn worth(self) -> f64 {
        f64::from(self.max_budget) / f64::from(self.tile) * (15.0 / f64::from(self.workgroups)).min(0.7)
    }
}

/// Ranges pay where a walk has few workgroups, rows are longer than the usual first walk, and what the walk would take is
/// worth as many as reach the budget. The first walk is as short as asks for no more ranges.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn ranges(walk: Walk, rule: RangeRule) -> Option<Ranges> {
    let Walk { max_len, max_budget, workgroups, .. } = walk;
    let RangeRule { walk_lens, usual, most, few, full } = rule;
    if workgroups >= full || max_budget <= usual || max_budget >= max_len {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    let count_after = |walk_len: u32| {
        let ratio = f64::from(max_budget) / f64::from(walk_len) * (1.0 - LEFT_TO_WALK);
        (ratio.ln() / growth.ln()).ceil().max(1.0) as u32
    };
    let longest = if count_after(usual) <= most { usual } else { *walk_lens.first()? };
    let count = count_after(longest);
    if max_budget <= longest || count > most || (count > few && f64::from(count) > walk.worth()) {
        return None;
    }
    let shortest = (0..).zip(walk_lens).filter(|w| *w.1 <= longest && count_after(*w.1) == count).last();
    let (walk_ix, &walk_len) = shortest?;
    Some(Ranges { count, walk_ix, walk_len, max_budget, growth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_are_as_short_as_the_ranges_allow() {
        let rule = RangeRule::of(false);
        let walk = |max_len, max_budget| Walk { max_len, max_budget, workgroups: 64, tile: 2048 };
        let of = |max_len, max_budget| ranges(walk(max_len, max_budget), rule).map(|r| (r.count, r.walk_len));
        assert_eq!(of(131_072, 65_536), Some((3, 8192)));
        assert_eq!(of(131_072, 39_322), Some((2, 4096)));
        assert_eq!(of(131_072, 13_108), Some((1, 2048)));
        assert_eq!(of(131_072, 117_965), None, "more ranges than a walk is worth");
        assert_eq!(of(16_384, 8192), None, "a walk alone");
        assert_eq!(of(20_001, 20_000), None, "fewer ranks than the longest walk takes");
        let full = Walk { workgroups: 128, ..walk(131_072, 65_536) };
        assert_eq!(ranges(full, rule), None, "a walk that fills the card");
        let ranges = ranges(walk(131_072, 13_108), rule).expect("ranges");
        assert_eq!(ranges.len(0), 13_108 - 2048, "no longer than what is left");
    }

    #[test]
    fn few_workgroups_are_worth_many_ranges() {
        let rule = RangeRule::of(false);
        let of = |max_len, max_budget, workgroups| {
            let walk = Walk { max_len, max_budget, workgroups, tile: 4096 };
            ranges(walk, rule).map(|r| (r.count, r.walk_len))
        };
        assert_eq!(of(1_048_576, 838_860, 16), Some((21, 8192)));
        assert_eq!(of(1_048_576, 943_718, 16), Some((32, 32_768)), "a longer walk, so that ranges are not too many");
        assert_eq!(of(1_048_576, 1_000_000, 16), None, "more ranges than there are parameters for");
        assert_eq!(of(262_144, 196_608, 64), Some((11, 8192)));
        assert_eq!(of(262_144, 209_715, 64), None, "more ranges than a walk is worth");
    }

    #[test]
    fn cpus_take_ranges_after_one_length() {
        let walk = Walk { max_len: 32_768, max_budget: 16_384, workgroups: 2, tile: 8 };
        let ranges = ranges(walk, RangeRule::of(true)).expect("ranges");
        assert_eq!((ranges.count, ranges.walk_len), (4, 1024));
        let many = Walk { workgroups: 1000, ..walk };
        assert_eq!(super::ranges(many, RangeRule::of(true)), Some(ranges), "however many walks there are");
    }
}
