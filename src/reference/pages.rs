//! Twin of `shaders/pages.wgsl`: which tables are sound, and what a compression frees.

use std::collections::HashMap;

use crate::pages::{PageShape, SequencePages};

/// One sequence's row of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceTable<'a> {
    /// Page ids; as many count as `longest` needs.
    pub entries: &'a [u32],
    /// Tokens of the longest head, over all neighbouring layers that share the table.
    pub longest: u32,
    /// Entries before this one are not written.
    pub first_writable: u32,
    /// The sequence takes part.
    pub active: bool,
}

impl SequenceTable<'_> {
    /// The entries in use: none of an inactive sequence.
    fn used(&self, page_size: u32) -> &[u32] {
        let used = if self.active { self.longest.div_ceil(page_size) } else { 0 };
        &self.entries[..used as usize]
    }
}

/// Which sequences a compression must leave alone because of their tables: those with an id that the pool has not, the
/// sentinel, an id twice, or a page after their first writable one that another active sequence has too.
#[must_use]
pub fn bad_sequences(pages: &PageShape, sequences: &[SequenceTable<'_>]) -> Vec<bool> {
    let first_page = u32::from(pages.has_sentinel);
    let is_id = |id: u32| (first_page..pages.num_pages).contains(&id);
    // Of each page the sequences' uses, and whether there is one that only reads.
    let mut writers: HashMap<u32, (u32, bool)> = HashMap::new();
    for sequence in sequences {
        for (ix, &id) in (0..).zip(sequence.used(pages.page_size)) {
            let uses = writers.entry(id).or_default();
            if ix >= sequence.first_writable {
                uses.0 += 1;
            } else {
                uses.1 = true;
            }
        }
    }
    let is_bad = |sequence: &SequenceTable<'_>| {
        let used = sequence.used(pages.page_size);
        (0..).zip(used).any(|(ix, id): (u32, &u32)| {
            let is_repeated = used[..ix as usize].contains(id);
            let is_shared = ix >= sequence.first_writable && writers[id] != (1, false);
            !is_id(*id) || is_repeated || is_shared
        })
    };
    sequences.iter().map(is_bad).collect()
}

/// What is left of a sequence's pages in one layer: its longest head had `before` tokens and has `after`.
#[must_use]
pub fn freed(page_size: u32, entries: &[u32], before: u32, after: u32) -> SequencePages {
    let used = before.div_ceil(page_size);
    let num_kept = after.div_ceil(page_size).min(used);
    SequencePages { num_kept, longest: after, freed: entries[num_kept as usize..used as usize].to_vec() }
}

/// Where a token lies: (page id, slot in the page).
#[must_use]
pub const fn place(page_size: u32, entries: &[u32], slot: u32) -> (u32, u32) {
    (entries[(slot / page_size) as usize], slot % page_size)
}

/// Tokens of a sequence that stay where they are become protected, whatever their scores.
pub fn protect_prefix(order_keys: &mut [u32], first_writable_token: u32) {
    for key in order_keys.iter_mut().take(first_writable_token as usize) {
        *key = 0;
    }
}
