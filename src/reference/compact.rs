//! Twin of `shaders/compact.wgsl`, `shaders/state.wgsl` and `shaders/append.wgsl`: rows moved, state updated.

use super::top_k::Selection;
use crate::policy::Policy;

/// State of one row: what [`CacheState`](crate::CacheState) holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheRow {
    /// Tokens in the cache.
    pub len: u32,
    /// Tokens seen so far by the row's sequence.
    pub num_seen: u32,
    /// Original positions of the slots below the last compacted length.
    pub positions: Vec<u32>,
}

impl CacheRow {
    /// A row of `len` tokens of which none has been dropped.
    #[must_use]
    pub const fn new(len: u32) -> Self {
        Self { len, num_seen: len, positions: Vec::new() }
    }

    /// Original position of a slot.
    #[must_use]
    pub fn position_of(&self, slot: u32) -> u32 {
        self.positions.get(slot as usize).copied().unwrap_or(self.num_seen - (self.len - slot))
    }

    /// Whether a slot's token is always kept: the first `sinks`, the last [`Policy::recent_of`] the row's length.
    #[must_use]
    pub fn is_protected(&self, policy: &Policy, slot: u32) -> bool {
        let position = self.position_of(slot);
        position < policy.sinks || self.num_seen - position <= policy.recent_of(self.len)
    }

    /// Counts appended tokens. What was stored of slots that the row has lost since is forgotten.
    pub fn append(&mut self, tokens: u32) {
        self.positions.truncate(self.len as usize);
        self.len += tokens;
        self.num_seen += tokens;
    }

    /// Takes appended tokens back, but none that a compression has left.
    pub fn truncate(&mut self, tokens: u32) {
        self.positions.truncate(self.len as usize);
        let compacted = u32::try_from(self.positions.len()).unwrap_or(u32::MAX);
        let tokens = tokens.min(self.len - compacted);
        self.num_seen = self.num_seen.max(self.len) - tokens;
        self.len -= tokens;
    }

    /// The state after a selection has been compacted. A row that keeps all is as it was.
    pub fn finish(&mut self, selection: &Selection) {
        if selection.budget == self.len {
            return;
        }
        self.positions = selection.sources.iter().map(|&s| self.position_of(s)).collect();
        self.len = selection.budget;
    }
}

/// Moves the rows of one tensor, densely packed, `row_bytes` a token.
pub fn move_rows(selection: &Selection, row_bytes: usize, rows: &mut [u8]) {
    let before = rows.to_vec();
    for (slot, &source) in selection.sources.iter().enumerate() {
        let source = source as usize * row_bytes;
        rows[slot * row_bytes..][..row_bytes].copy_from_slice(&before[source..][..row_bytes]);
    }
}
