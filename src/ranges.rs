//! How a positional compaction of few long rows goes on after its first walk: by ranges, each moved at once.

/// Ranks that the first walk takes where ranges follow.
pub(crate) const WALK_LEN: u32 = 8192;
/// Most ranges of a row.
pub(crate) const MAX_RANGES: u32 = 8;
/// Workgroups from which on a walk alone fills the card.
const FULL_WALK: u32 = 128;

/// The ranges by which a positional compaction goes on after its first walk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranges {
    pub count: u32,
    /// Expected ratio of a range's end to its start: rows are thinned by the keep ratio.
    growth: f64,
}

impl Ranges {
    /// Expected ranks of a range; its dispatch goes round for more.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating estimate of a grid")]
    pub fn len(self, ix: u32) -> u32 {
        let start = f64::from(WALK_LEN) * self.growth.powi(ix.cast_signed());
        (start * (self.growth - 1.0)).clamp(1.0, f64::from(crate::MAX_CAPACITY)) as u32
    }
}

/// Ranges pay where a walk has few workgroups, rows are long and few ranges reach the budget.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub(crate) fn ranges(max_len: u32, max_budget: u32, walk_workgroups: u32) -> Option<Ranges> {
    if walk_workgroups >= FULL_WALK || max_budget <= WALK_LEN || max_budget >= max_len {
        return None;
    }
    let growth = f64::from(max_len) / f64::from(max_budget);
    // A little more than expected: the last walk should find nothing.
    let count = (f64::from(max_budget) / f64::from(WALK_LEN) * 1.02).ln() / growth.ln();
    let count = count.ceil().max(1.0) as u32;
    (count <= MAX_RANGES).then_some(Ranges { count, growth })
}
