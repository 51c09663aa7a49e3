//! When to compress while decoding, from what the host knows: no length is read back.

use std::sync::Arc;

use crate::error::ArgumentError;
use crate::plan::{Plan, PlanInner};
use crate::policy::{BudgetRule, Order};
use crate::shape::KvShape;

/// What makes a compression due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// A compressed row may have come to this many tokens. With [`Policy::min_len`](crate::Policy::min_len) at the same
    /// number each row waits for its own turn.
    AtCap(u32),
    /// So many tokens have been appended to a sequence since the last compression.
    Every(u32),
}

/// A compression that is due now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Due {
    /// For [`Bound::record_stages`](crate::Bound::record_stages) or [`Bound::record`](crate::Bound::record), tokens.
    pub max_len: u32,
    /// For [`Bound::record_norms`](crate::Bound::record_norms): most tokens that a row has got since the last, or since
    /// the start.
    pub max_new: u32,
}

/// Says after each step of a decode loop whether to record a compression. It follows the same integers as the GPU: an
/// upper bound of each sequence's rows in the compressed layers.
///
/// It counts on what it is told: that all sequences are active where it says that a compression is due, and that it is
/// recorded; that no table of a paged cache is faulty then, or [`Schedule::left_whole`] is told; that prefixes are those of
/// [`Schedule::set_prefixes`]; that rows are shortened by what [`Schedule::truncate`] is told alone, with counts of 0 for
/// inactive sequences, and without a compression beside those that are due between tokens and their taking back; that order
/// keys, if the caller writes them, hold no more zeros than the budget; that keys are not rotated to slots where budgets differ
/// by head. Layers that its plan leaves whole are taken to keep every token, though another plan may compress them: then it
/// refuses tokens beyond the capacity too early.
///
/// # Example
/// The paper's streaming rule with the recommended protection: at the cap, 98 % are kept.
/// ```no_run
/// # fn f(device: &wgpu::Device, queue: &wgpu::Queue, compressor: keynorm::Compressor, shape: keynorm::KvShape,
/// #      views: &[keynorm::KvView<'_>], mut write_tokens: impl FnMut(&mut wgpu::ComputePass<'_>))
/// #      -> Result<(), Box<dyn std::error::Error>> {
/// use keynorm::{Policy, Schedule, Stages, Trigger};
/// let plan = compressor.plan(&shape, &Policy::streaming(4096))?;
/// let (state, workspace) = (plan.create_state()?, plan.create_workspace()?);
/// let bound = plan.bind(device, views, &state, &workspace)?;
/// let prompt_len = 1000;
/// state.set_lengths(queue, &[prompt_len])?;
/// state.set_append_counts(queue, 0, &[1])?; // one token a step
/// let mut schedule = Schedule::new(&plan, Trigger::AtCap(4096), &[prompt_len])?;
/// loop {
///     let mut encoder = device.create_command_encoder(&Default::default());
///     {
///         let mut pass = encoder.begin_compute_pass(&Default::default());
///         write_tokens(&mut pass);
///         bound.record_append(&mut pass, 0)?;
///         if let Some(due) = schedule.append(&[1])? {
///             bound.record_norms(&mut pass, due.max_new)?;
///             bound.record_stages(&mut pass, due.max_len, Stages::FROM_NORMS)?;
///         }
///     }
///     queue.submit([encoder.finish()]);
/// #   break;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Schedule {
    plan: Arc<PlanInner>,
    trigger: Trigger,
    /// Of the compressed rows, each once; one at least.
    rules: Vec<BudgetRule>,
    sequences: Vec<Sequence>,
}

#[derive(Debug, Clone)]
struct Sequence {
    /// By rule, what the length of each of its rows lies between.
    lens: Vec<Bounds>,
    /// Its first tokens that stay.
    prefix: u32,
    is_compressed: bool,
    /// Recent tokens may lie in the prefix, which has changed since tokens filled holes: fewer are protected then.
    may_overlap: bool,
    /// Tokens of every row of a layer that is left whole.
    num_seen: u32,
    /// Tokens without a norm: those since the last compression, and all where it has left the sequence whole.
    num_new: u32,
    /// Tokens since the last compression that was due.
    num_appended: u32,
}

/// Tokens of a row: at least and at most.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    least: u32,
    most: u32,
}

impl Sequence {
    /// At least the length of each of its compressed rows.
    fn len(&self) -> u32 {
        self.lens.iter().map(|len| len.most).max().unwrap_or(0)
    }

    /// What a compression leaves.
    fn compress(&mut self, plan: &PlanInner, rules: &[BudgetRule]) {
        let protected = plan.protected_beside(self.prefix, self.may_overlap);
        for (len, rule) in self.lens.iter_mut().zip(rules) {
            *len = if plan.kept_is_unknown() {
                Bounds { least: len.least.min(1), most: len.most }
            } else {
                kept(rule, *len, protected)
            };
        }
        self.is_compressed = true;
        (self.num_new, self.num_appended) = (0, 0);
    }
}

/// What is left of a row by a rule, between `protected.least` and `protected.most` of its tokens being protected.
fn kept(rule: &BudgetRule, len: Bounds, protected: Bounds) -> Bounds {
    if len.most < rule.min_len {
        return len;
    }
    let tokens = |len: u32, protected: u32| rule.tokens(len, protected.min(len), len);
    let most = tokens(len.most, protected.most);
    let least = tokens(len.least.max(rule.min_len), protected.least);
    if len.least >= rule.min_len {
        return Bounds { least, most };
    }
    // It may be too short to be compressed.
    Bounds { least: least.min(len.least), most: most.max(len.most.min(rule.min_len - 1)) }
}

impl Schedule {
    /// A schedule for sequences that start with `lengths` tokens, as
    /// [`CacheState::set_lengths`](crate::CacheState::set_lengths) was told.
    ///
    /// # Errors
    /// A count other than `batch_size`; a length above the capacity; a trigger of 0 tokens; a cap above the capacity; a cap for
    /// a policy whose budgets depend on keys ([`Budget::MaxNorm`](crate::Budget::MaxNorm), a pool), on segments or on the
    /// caller's order keys ([`ExternalScore::OrderKeys`](crate::ExternalScore::OrderKeys)): how long rows are is then known on
    /// the GPU alone.
    pub fn new(plan: &Plan, trigger: Trigger, lengths: &[u32]) -> Result<Self, ArgumentError> {
        let inner = &plan.inner;
        let capacity = inner.shape.capacity;
        match trigger {
            Trigger::AtCap(0) | Trigger::Every(0) => {
                return Err(ArgumentError::ZeroDimension { argument: "trigger" });
            }
            Trigger::AtCap(cap) if cap > capacity => {
                return Err(ArgumentError::TooLarge { argument: "cap", got: cap.into(), limit: capacity.into() });
            }
            Trigger::AtCap(_) if inner.kept_is_unknown() => {
                return Err(ArgumentError::Unsupported {
                    what: "a cap where the GPU alone knows what is kept (take Trigger::Every)",
                });
            }
            _ => (),
        }
        crate::state::check_count("lengths", lengths.len(), inner.shape.batch_size as usize)?;
        let rules = inner.distinct_rules();
        let sequence = Sequence {
            lens: vec![Bounds::default(); rules.len()],
            prefix: 0,
            is_compressed: false,
            may_overlap: false,
            num_seen: 0,
            num_new: 0,
            num_appended: 0,
        };
        let sequences = vec![sequence; lengths.len()];
        let mut schedule = Self { plan: Arc::clone(inner), trigger, rules, sequences };
        schedule.grow("lengths", lengths)?;
        Ok(schedule)
    }

    /// Counts on the first so many tokens of each sequence to stay: what
    /// [`CacheState::set_first_writable`](crate::CacheState::set_first_writable) was told, of a paged cache times the page size.
    ///
    /// # Errors
    /// A count other than `batch_size`.
    pub fn set_prefixes(&mut self, tokens: &[u32]) -> Result<(), ArgumentError> {
        crate::state::check_count("tokens", tokens.len(), self.sequences.len())?;
        for (sequence, &tokens) in self.sequences.iter_mut().zip(tokens) {
            let fills_holes = self.plan.policy.order == Order::Fill;
            sequence.may_overlap |= fills_holes && sequence.is_compressed && sequence.prefix != tokens;
            sequence.prefix = tokens;
        }
        Ok(())
    }

    /// Counts a sequence as empty, as [`CacheState::reset_sequence`](crate::CacheState::reset_sequence) makes it; its prefix
    /// stays.
    ///
    /// # Errors
    /// A sequence that the shape does not have.
    pub fn reset_sequence(&mut self, sequence: u32) -> Result<(), ArgumentError> {
        let limit = self.sequences.len() as u64;
        let error = ArgumentError::IndexOutOfRange { argument: "sequence", got: sequence.into(), limit };
        let sequence = self.sequences.get_mut(sequence as usize).ok_or(error)?;
        sequence.lens.fill(Bounds::default());
        (sequence.is_compressed, sequence.may_overlap) = (false, false);
        (sequence.num_seen, sequence.num_new, sequence.num_appended) = (0, 0, 0);
        Ok(())
    }

    /// Counts on the last compression having left a sequence as it was, with rows of up to `len` tokens, as one whose table is
    /// faulty ([`Status::BAD_PAGE`](crate::Status::BAD_PAGE)) or that is not active: what [`Schedule::max_len`] was before it,
    /// and the tokens since. None of them counts as having a norm. The next step makes a compression due where it was.
    ///
    /// # Errors
    /// A sequence that the shape does not have; a length above the capacity.
    pub fn left_whole(&mut self, sequence: u32, len: u32) -> Result<(), ArgumentError> {
        let (limit, capacity) = (self.sequences.len() as u64, self.plan.shape.capacity);
        let error = ArgumentError::IndexOutOfRange { argument: "sequence", got: sequence.into(), limit };
        let sequence = self.sequences.get_mut(sequence as usize).ok_or(error)?;
        if len > capacity {
            return Err(ArgumentError::TooLarge { argument: "len", got: len.into(), limit: capacity.into() });
        }
        // No row is shorter than if it had been compressed.
        sequence.lens.iter_mut().for_each(|bounds| bounds.most = bounds.most.max(len));
        sequence.num_new = sequence.num_new.max(len);
        Ok(())
    }

    /// Counts the tokens that a step appends to each sequence; where a compression is due after them, says how to record
    /// it, and counts on it being recorded.
    ///
    /// # Errors
    /// A count other than `batch_size`; tokens for which a row may have no room: nothing is counted then. Where only the GPU
    /// knows how long rows are, it is trusted to keep them below the capacity.
    pub fn append(&mut self, counts: &[u32]) -> Result<Option<Due>, ArgumentError> {
        crate::state::check_count("counts", counts.len(), self.sequences.len())?;
        self.grow("counts", counts)?;
        let is_due = |s: &Sequence| match self.trigger {
            Trigger::AtCap(cap) => s.num_new > 0 && s.len() >= cap,
            Trigger::Every(tokens) => s.num_new >= tokens,
        };
        if !self.sequences.iter().any(is_due) {
            return Ok(None);
        }
        let most = |of: fn(&Sequence) -> u32| self.sequences.iter().map(of).max().unwrap_or(0);
        let due = Due { max_len: most(Sequence::len), max_new: most(|s| s.num_new).min(self.plan.shape.capacity) };
        self.sequences.iter_mut().for_each(|s| s.compress(&self.plan, &self.rules));
        Ok(Some(due))
    }

    /// Goes on with a plan for caches of more capacity, whose state [`CacheState::copy_into`](crate::CacheState::copy_into) has
    /// filled.
    ///
    /// # Errors
    /// A plan of another policy or geometry, or of less capacity; the schedule stays as it is then.
    pub fn set_plan(&mut self, plan: &Plan) -> Result<(), ArgumentError> {
        let (from, to) = (&self.plan, &plan.inner);
        let (before, after) = (from.shape.capacity, to.shape.capacity);
        if (KvShape { capacity: after, ..from.shape }) != to.shape || from.policy != to.policy {
            return Err(ArgumentError::WrongPlan { argument: "plan" });
        }
        if before > after {
            return Err(ArgumentError::TooLarge { argument: "capacity", got: before.into(), limit: after.into() });
        }
        self.plan = Arc::clone(&plan.inner);
        Ok(())
    }

    /// Counts the tokens that [`Bound::record_truncate`](crate::Bound::record_truncate) takes back from each sequence, of those
    /// that [`Schedule::append`] was told of. Speculative decoding need not tell it of drafts: where `max_len` and the drafts
    /// fit the capacity, it appends them, takes back those that are rejected, and counts the rest, so that none is compressed
    /// unverified.
    ///
    /// # Errors
    /// A count other than `batch_size`; more tokens than were appended since the last compression that was due: nothing is
    /// counted then.
    pub fn truncate(&mut self, counts: &[u32]) -> Result<(), ArgumentError> {
        crate::state::check_count("counts", counts.len(), self.sequences.len())?;
        for (sequence, &count) in self.sequences.iter().zip(counts) {
            if count > sequence.num_appended {
                let (got, limit) = (count.into(), sequence.num_appended.into());
                return Err(ArgumentError::TooLarge { argument: "counts", got, limit });
            }
        }
        for (sequence, &count) in self.sequences.iter_mut().zip(counts) {
            for len in &mut sequence.lens {
                *len = Bounds { least: len.least.saturating_sub(count), most: len.most.saturating_sub(count) };
            }
            sequence.num_seen = sequence.num_seen.saturating_sub(count);
            sequence.num_new = sequence.num_new.saturating_sub(count);
            sequence.num_appended -= count;
        }
        Ok(())
    }

    /// At least the length of each compressed row of a sequence, tokens.
    ///
    /// # Errors
    /// A sequence that the shape does not have.
    pub fn max_len(&self, sequence: u32) -> Result<u32, ArgumentError> {
        self.sequences.get(sequence as usize).map(Sequence::len).ok_or(ArgumentError::IndexOutOfRange {
            argument: "sequence",
            got: sequence.into(),
            limit: self.sequences.len() as u64,
        })
    }

    fn grow(&mut self, argument: &'static str, counts: &[u32]) -> Result<(), ArgumentError> {
        let capacity = self.plan.shape.capacity;
        let some_whole = self.plan.layers.len() < self.plan.shape.num_layers as usize;
        let mut grown = self.sequences.clone();
        for (index, (sequence, &count)) in grown.iter_mut().zip(counts).enumerate() {
            let longest = if some_whole { sequence.num_seen } else { sequence.len() };
            let got = longest.saturating_add(count);
            // Rows that may be shorter than is known here are at least no longer than the capacity.
            let is_known = some_whole || !self.plan.kept_is_unknown() || count > capacity;
            if got > capacity && is_known {
                return Err(ArgumentError::LengthOverCapacity { argument, index, got, capacity });
            }
            for len in &mut sequence.lens {
                *len = Bounds { least: (len.least + count).min(capacity), most: (len.most + count).min(capacity) };
            }
            sequence.num_seen = sequence.num_seen.saturating_add(count);
            sequence.num_new = sequence.num_new.saturating_add(count);
            sequence.num_appended = sequence.num_appended.saturating_add(count);
        }
        self.sequences = grown;
        Ok(())
    }
}

impl PlanInner {
    /// How many tokens of a row are protected, if it has them, where its first `prefix` stay.
    fn protected_beside(&self, prefix: u32, may_overlap: bool) -> Bounds {
        let (head, recent) = (self.policy.sinks.max(prefix), self.policy.recent);
        let most = head.saturating_add(recent);
        let least = match self.policy.recent_share {
            // The window grows with the row, and what was dropped does not come back.
            Some(_) => head,
            None if may_overlap => head.max(recent),
            None => most,
        };
        Bounds { least, most }
    }
}
