//! How a positional compaction of few long rows goes on after its first walk: by ranges, each moved at once.

/// When ranges follow a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeRule {
    /// Ranks that the first walk may take, falling.
    pub walk_lens: &'static [u32],
    /// Most ranges of a row.
    pub most: u32,
}

impl RangeRule {
    /// On a CPU a walk costs a rank about three times what a range does, and a dispatch next to nothing.
    pub const fn of(serial: bool) -> Self {
        if serial {
            Self { walk_lens: &[1024], most: 40 }
        } else {
            Self { walk_lens: &[8192, 4096, 2048, 1024], most: 8 }
        }
    }

    /// Parameter blocks of a walk length: of the first walk, and of each place in the order of ranges.
    pub const fn blocks(self) -> u32 {
        self.most + 2
    }
}

/// Workgroups from which on a walk alone fills the card.
const FULL_WALK: u32 = 128;

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

/// Ranges pay where a walk has few workgroups, rows are long and few ranges reach the budget. The first walk is as short as
/// asks for no more ranges.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn ranges(max_len: u32, max_budget: u32, walk_workgroups: u32, rule: RangeRule) -> Option<Ranges> {
    let RangeRule { walk_lens, most } = rule;
    let longest = *walk_lens.first()?;
    if walk_workgroups >= FULL_WALK || max_budget <= longest || max_budget >= max_len {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    let count_after = |walk_len: u32| {
        let ratio = f64::from(max_budget) / f64::from(walk_len) * (1.0 - LEFT_TO_WALK);
        (ratio.ln() / growth.ln()).ceil().max(1.0) as u32
    };
    let count = count_after(longest);
    let shortest = (0..).zip(walk_lens).filter(|w| count_after(*w.1) == count).last();
    let (walk_ix, &walk_len) = shortest.filter(|_| count <= most)?;
    Some(Ranges { count, walk_ix, walk_len, max_budget, growth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_are_as_short_as_the_ranges_allow() {
        let rule = RangeRule::of(false);
        let of = |max_len, max_budget| ranges(max_len, max_budget, 64, rule).map(|r| (r.count, r.walk_len));
        assert_eq!(of(131_072, 65_536), Some((3, 8192)));
        assert_eq!(of(131_072, 39_322), Some((2, 4096)));
        assert_eq!(of(131_072, 13_108), Some((1, 2048)));
        assert_eq!(of(131_072, 117_965), None, "more ranges than there are parameters for");
        assert_eq!(of(16_384, 8192), None, "a walk alone");
        assert_eq!(ranges(131_072, 65_536, FULL_WALK, rule), None, "a walk that fills the card");
        let ranges = ranges(131_072, 13_108, 64, rule).expect("ranges");
        assert_eq!(ranges.len(0), 13_108 - 2048, "no longer than what is left");
    }
}
