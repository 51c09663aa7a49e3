//! How a positional compaction of few long rows goes on after its first walk: by ranges, each moved at once.

/// When ranges follow a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeRule {
    /// Ranks that the first walk takes.
    pub walk_len: u32,
    /// Most ranges of a row.
    pub most: u32,
}

impl RangeRule {
    /// On a CPU a walk costs a rank about three times what a range does, and a dispatch next to nothing.
    pub const fn of(serial: bool) -> Self {
        if serial { Self { walk_len: 1024, most: 40 } } else { Self { walk_len: 8192, most: 8 } }
    }
}

/// Workgroups from which on a walk alone fills the card.
const FULL_WALK: u32 = 128;

/// The ranges by which a positional compaction goes on after its first walk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranges {
    pub count: u32,
    walk_len: u32,
    /// Expected ratio of a range's end to its start: rows are thinned by the keep ratio.
    growth: f64,
}

impl Ranges {
    /// Expected ranks of a range; its dispatch goes round for more.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating estimate of a grid")]
    pub fn len(self, ix: u32) -> u32 {
        let start = f64::from(self.walk_len) * self.growth.powi(ix.cast_signed());
        (start * (self.growth - 1.0)).clamp(1.0, f64::from(crate::MAX_CAPACITY)) as u32
    }
}

/// Ranges pay where a walk has few workgroups, rows are long and few ranges reach the budget.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn ranges(max_len: u32, max_budget: u32, walk_workgroups: u32, rule: RangeRule) -> Option<Ranges> {
    let RangeRule { walk_len, most } = rule;
    if walk_workgroups >= FULL_WALK || max_budget <= walk_len || max_budget >= max_len {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    // A little more than expected: the last walk should find nothing.
    let count = (f64::from(max_budget) / f64::from(walk_len) * 1.02).ln() / growth.ln();
    let count = count.ceil().max(1.0) as u32;
    (count <= most).then_some(Ranges { count, walk_len, growth })
}
