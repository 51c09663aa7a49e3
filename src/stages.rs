//! The stages of a compression.

/// Stages to record. Each may be recorded alone, in this order, with the same workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stages(u32);

impl Stages {
    /// Keys, or cached norms → order keys.
    pub const SCORE: Self = Self(1);
    /// Order keys → threshold and lists of slots of each row.
    pub const SELECT: Self = Self(2);
    /// Lists → rows moved, positions and lengths updated.
    pub const COMPACT: Self = Self(4);
    /// Keys → norms of tokens that have none yet; nothing without [`Policy::cached_norms`](crate::Policy::cached_norms).
    pub const NORMS: Self = Self(8);
    /// A compression from norms that [`Bound::record_norms`](crate::Bound::record_norms) has brought up to date: it reads no key.
    pub const FROM_NORMS: Self = Self(7);
    /// The whole compression.
    pub const ALL: Self = Self(15);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}
