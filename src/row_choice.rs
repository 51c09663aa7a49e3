//! Which kernels take a window's rows, whole or in parts, and by how many invocations: by their number and length, and by what
//! workgroup memory holds.

use crate::criterion::Score;
use crate::device::Capabilities;
use crate::draft::word;
use crate::module::Reduction;
use crate::moves::CARD;
use crate::plan::{ROW_TOKENS, WORKGROUP};
use crate::policy::{Order, Policy, Selector};
use crate::shape::{Dtype, KvShape};

/// How rows of up to `most` tokens are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub most: u32,
    pub workgroup: u32,
    /// Workgroups of a row that find room on a card at once.
    pub at_once: u32,
    /// Words of workgroup memory for the keys and slots of whole rows, 0 where they share those of the bins; `None`: in parts.
    pub slot_words: Option<u32>,
    /// Words of workgroup memory for two slots each where invocations hold two eights of tokens; 0: they hold one.
    pub pair_words: u32,
    /// Most tokens that `Fill` may have to move of a row.
    pub most_moved: u32,
}

/// The kernels of so many rows of a window, which is the only one or not, by ever longer rows.
pub(crate) fn choices(
    shape: &KvShape,
    policy: &Policy,
    capabilities: &Capabilities,
    rows: (u64, bool),
) -> impl Iterator<Item = Taken> {
    let reduction = capabilities.reduction(shape.keys.norm_lanes());
    let eights = sizes(capabilities, reduction).map(|workgroup| ROW_TOKENS * workgroup);
    let largest = sizes(capabilities, reduction).next_back().unwrap_or(0);
    let held = eights.chain((largest > 0).then(|| most_of_pairs(largest, capabilities, reduction)));
    let is_full = |len| {
        takes_whole(policy) && len <= ROW_TOKENS * largest && fills_card((shape, len), policy, capabilities, rows)
    };
    let lens = row_lens(shape.capacity, held, is_full);
    lens.into_iter().filter_map(move |len| taken((shape, len), policy, capabilities, rows))
}

/// Invocations of the workgroups.
const SIZES: [u32; 3] = [WORKGROUP, 2 * WORKGROUP, 4 * WORKGROUP];

/// Those that the device has room for.
fn sizes(capabilities: &Capabilities, reduction: Reduction) -> impl DoubleEndedIterator<Item = u32> + Clone {
    SIZES.into_iter().filter(move |&workgroup| has_size(workgroup, capabilities, reduction))
}

/// Lengths of rows, ascending, for which kernels are made: what workgroups hold, ascending too, the capacity, and up to where
/// rows are taken whole.
fn row_lens(capacity: u32, held: impl Iterator<Item = u32> + Clone, is_full: impl Fn(u32) -> bool) -> Vec<u32> {
    let longest = capacity.min(held.clone().max().unwrap_or(0));
    let mut lens: Vec<_> = held.filter(|&held| held < longest).chain([longest]).collect();
    // Full rows come before others: the first that is not, by halving.
    let (mut whole, mut beyond) = (0, longest + 1);
    while beyond - whole > 1 {
        let middle = whole + (beyond - whole) / 2;
        if is_full(middle) { whole = middle } else { beyond = middle }
    }
    if let Err(place) = lens.binary_search(&whole) {
        if whole > 0 {
            lens.insert(place, whole);
        }
    }
    lens
}

/// So many rows of a window, which is the only one or not, of up to `len` tokens; `None` where they go stage by stage: the
/// plan asks for more than the kernel does, rows may be longer than it holds, or several windows of parts would wait for
/// each other.
fn taken(
    (shape, len): (&KvShape, u32),
    policy: &Policy,
    capabilities: &Capabilities,
    rows: (u64, bool),
) -> Option<Taken> {
    // On a CPU the chain is faster: there a workgroup's locals go through memory at each barrier.
    let plain = !capabilities.serial
        && policy.selector == Selector::Auto
        && !policy.segments
        && policy.pool.is_none()
        && (policy.cached_norms || !shape.keys.dtype.is_quantised() && !shape.values.dtype.is_quantised());
    let (num_rows, is_alone) = rows;
    if policy.cached_norms {
        return taken_cached((shape, len), policy.order, capabilities, rows).filter(|_| plain);
    }
    let is_full = takes_whole(policy) && fills_card((shape, len), policy, capabilities, rows);
    if !plain || !(is_full || is_alone) {
        return None;
    }
    let reduction = capabilities.reduction(shape.keys.norm_lanes());
    let mut sizes = sizes(capabilities, reduction);
    let largest = sizes.clone().next_back()?;
    let of = |workgroup, slot_words, pair_words| Taken {
        most: len,
        workgroup,
        at_once: at_once(workgroup, num_rows),
        slot_words,
        pair_words,
        most_moved: u32::MAX,
    };
    if len > ROW_TOKENS * largest {
        let is_held = len <= most_of_pairs(largest, capabilities, reduction);
        let pairs = of(largest, None, len.div_ceil(2));
        return (is_held && is_alone && pairs.at_once >= LEAST_OF_PAIRS).then_some(pairs);
    }
    let wanted = if is_full { wanted_workgroup(len, num_rows) } else { len.div_ceil(ROW_TOKENS) };
    let workgroup = sizes.find(|&workgroup| workgroup >= wanted).unwrap_or(largest);
    let slot_words = slot_words(len, workgroup, capabilities, reduction).filter(|_| is_full);
    (slot_words.is_some() || is_alone).then_some(of(workgroup, slot_words, 0))
}

/// Whether a workgroup can score a row whose slots it chooses: by the norm alone.
fn takes_whole(policy: &Policy) -> bool {
    policy.score_in_use() == Score::KeyNorm && !policy.cached_norms
}

/// Likewise where norms are cached: in one dispatch, a workgroup to a row, where that has not much to move or rows are enough.
fn taken_cached(
    (shape, len): (&KvShape, u32),
    order: Order,
    capabilities: &Capabilities,
    (num_rows, is_alone): (u64, bool),
) -> Option<Taken> {
    let reduction = Reduction::Subgroup; // there are no lanes to add
    let mut sizes = sizes(capabilities, reduction);
    let largest = sizes.clone().next_back()?;
    let most_moved = match order {
        Order::Fill if num_rows >= FULL_ROWS_OF_CACHED => u32::MAX,
        Order::Fill => most_moved(shape, len, num_rows),
        Order::Positional if num_rows >= MORE_FULL_ROWS => u32::MAX,
        Order::Positional => 0,
    };
    if !is_alone || most_moved == 0 || len > most_of_pairs(largest, capabilities, reduction) {
        return None;
    }
    let wanted = len.div_ceil(ROW_TOKENS).max(if num_rows <= FEW_ROWS { 2 * WORKGROUP } else { WORKGROUP });
    let workgroup = sizes.find(|&workgroup| workgroup >= wanted).unwrap_or(largest);
    let pair_words = if len > ROW_TOKENS * workgroup { len.div_ceil(2) } else { 0 };
    let at_once = at_once(workgroup, num_rows);
    Some(Taken { most: len, workgroup, at_once, slot_words: Some(0), pair_words, most_moved })
}

/// Tokens that a workgroup moves by itself before a dispatch of moves over the whole card is faster, which the more so the
/// more rows there are takes time of its own. To select from a long row takes a workgroup longer. See `benches/record`.
fn most_moved(shape: &KvShape, len: u32, num_rows: u64) -> u32 {
    moved_of_bytes(shape, len, (384 << 10) * (32 + num_rows) / 32)
}

/// Tokens of so many bytes of keys and values, of rows of more than 4096 in proportion fewer.
fn moved_of_bytes(shape: &KvShape, len: u32, bytes: u64) -> u32 {
    let row_bytes = u64::from(shape.keys.row_bytes()) + u64::from(shape.values.row_bytes());
    word(bytes * 4096 / u64::from(len.max(4096)) / row_bytes)
}

impl Taken {
    /// Rows whose norms are cached, moved by words, which takes a workgroup longer: only where there is little to move.
    pub fn by_words(self, shape: &KvShape, order: Order) -> Option<Self> {
        let most_moved = moved_of_bytes(shape, self.most, 192 << 10);
        (order == Order::Fill).then_some(Self { most_moved: self.most_moved.min(most_moved), ..self })
    }
}

/// Most tokens of a row of which so many invocations hold two eights each: no fewer than one eight.
fn most_of_pairs(workgroup: u32, capabilities: &Capabilities, reduction: Reduction) -> u32 {
    let room = capabilities.workgroup_bytes.saturating_sub(memory(0, workgroup, reduction));
    (room / 4 * 2).clamp(ROW_TOKENS * workgroup, 2 * ROW_TOKENS * workgroup)
}

/// Workgroups of a row that find room at once from which on each selects for itself with two eights an invocation: one for keys
/// and one for values. See `benches/record`.
const LEAST_OF_PAIRS: u32 = 2;

/// Workgroups of each of so many rows that find room on a card at once.
fn at_once(workgroup: u32, num_rows: u64) -> u32 {
    word(u64::from(CARD * 4 * WORKGROUP) / (u64::from(workgroup) * num_rows))
}

/// Words of the bins that slots share: of eight tokens an invocation, two a word beyond this many invocations.
const fn shared_words(workgroup: u32) -> u32 {
    if workgroup > MOST_WHOLE { ROW_TOKENS / 2 * workgroup } else { ROW_TOKENS * workgroup }
}

/// As in shared/radix_row.wgsl.
const MOST_WHOLE: u32 = 512;

/// Workgroup memory of the kernel, bytes: so many words; scans; and, where they do not go by shuffles, the sums of lanes.
fn memory(words: u32, workgroup: u32, reduction: Reduction) -> u32 {
    let sums = if reduction == Reduction::Workgroup { 20 } else { 0 };
    256 + 4 * words + (4 + sums) * workgroup
}

/// Where the workgroup of a whole row holds its keys, and then its slots: words of their own, 0 where they share those of the
/// bins; `None` where neither has room.
///
/// With words of their own, first digits are counted while keys are awaited. On an H100 `Fill` gains 2 to 4 % by it, but not in
/// small workgroups, of which fewer fit a multiprocessor then. See `benches/record`.
fn slot_words(len: u32, workgroup: u32, capabilities: &Capabilities, reduction: Reduction) -> Option<u32> {
    let words = len.next_power_of_two().max(DIGIT_WORDS * 2);
    let fits = memory(DIGIT_WORDS + words, workgroup, reduction) <= capabilities.workgroup_bytes;
    if workgroup > WORKGROUP && fits {
        return Some(words);
    }
    (len <= shared_words(workgroup)).then_some(0)
}

/// Words of the counts of first digits, as in shared/radix_row.wgsl.
const DIGIT_WORDS: u32 = 1024;

/// Whether the device has room for workgroups of so many invocations.
fn has_size(workgroup: u32, capabilities: &Capabilities, reduction: Reduction) -> bool {
    let fits = memory(shared_words(workgroup), workgroup, reduction) <= capabilities.workgroup_bytes;
    fits && workgroup <= capabilities.row_workgroup
}

/// Invocations for a row that is taken whole: where rows are few, more than eight tokens each would ask for, since then more
/// loads are in flight. See `benches/record`.
fn wanted_workgroup(len: u32, num_rows: u64) -> u32 {
    let least = len.div_ceil(ROW_TOKENS);
    if num_rows <= FEW_ROWS {
        4 * WORKGROUP
    } else if num_rows <= 2 * FEW_ROWS {
        len.min(2 * WORKGROUP).max(least)
    } else {
        least
    }
}

/// Whether so many rows are taken whole: they fill the card, or do so well enough where the others would go stage by stage, or
/// are so short that a second dispatch takes longer than they do.
fn fills_card(
    (shape, len): (&KvShape, u32),
    policy: &Policy,
    capabilities: &Capabilities,
    (num_rows, is_alone): (u64, bool),
) -> bool {
    let is_wide = has_size(4 * WORKGROUP, capabilities, capabilities.reduction(shape.keys.norm_lanes()));
    // The squares of bf16 take more arithmetic, and a workgroup moves few bytes at a time.
    let needs_more = policy.order == Order::Positional || shape.keys.dtype == Dtype::Bf16;
    let kib = u64::from(len) * u64::from(shape.keys.row_bytes()) / 1024;
    let full = if kib > 1024 {
        MORE_FULL_ROWS
    } else if !is_alone {
        FULL_ROWS_OF_WINDOWS
    } else if kib > 256 || !is_wide {
        if needs_more { MORE_FULL_ROWS } else { FULL_ROWS }
    } else if kib > 128 {
        FULL_ROWS_OF_SHORT
    } else if kib > 64 {
        FULL_ROWS_OF_SHORT / 3
    } else {
        FULL_ROWS_OF_SHORT / 6
    };
    num_rows >= full
}

/// Rows of a window from which on a workgroup to a row is faster than two dispatches, which give a row several: at best. See
/// `benches/record`.
const FULL_ROWS: u64 = 64;
/// Likewise of large rows, and where a workgroup has more to do for a byte.
const MORE_FULL_ROWS: u64 = 96;
/// Likewise of one of several windows, which would go stage by stage.
const FULL_ROWS_OF_WINDOWS: u64 = 48;
/// Likewise of rows of up to 256 KiB of keys, by workgroups of 1024; a third of it of half as many, a sixth of fewer.
const FULL_ROWS_OF_SHORT: u64 = 48;
/// Rows of cached norms from which on `Fill` gains by one dispatch whatever is moved.
const FULL_ROWS_OF_CACHED: u64 = 48;
/// Rows up to which a workgroup has a multiprocessor for itself.
const FEW_ROWS: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;
    use crate::shape::TensorSpec;

    #[test]
    fn kernels_are_made_for_what_workgroups_hold() {
        let held = [2048, 4096, 8192, 14_208];
        for (capacity, full, expected) in [
            (1, 0, &[1][..]),
            (2048, 1 << 20, &[2048]),
            (2049, 2049, &[2048, 2049]),
            (5000, 0, &[2048, 4096, 5000]),
            (8192, 700, &[700, 2048, 4096, 8192]),
            (9000, 0, &[2048, 4096, 8192, 9000]),
            (1 << 20, 4096, &[2048, 4096, 8192, 14_208]),
            (1 << 20, 5000, &[2048, 4096, 5000, 8192, 14_208]),
        ] {
            assert_eq!(
                row_lens(capacity, held.into_iter(), |len| len <= full),
                expected,
                "a capacity of {capacity}, {full} full"
            );
        }
    }

    #[test]
    fn few_rows_get_wide_workgroups() {
        for (len, num_rows, expected) in
            [(100, 128, 1024), (8192, 64, 1024), (256, 129, 256), (512, 256, 512), (8192, 256, 1024), (4096, 257, 512)]
        {
            assert_eq!(wanted_workgroup(len, num_rows), expected, "{num_rows} rows of {len}");
        }
    }

    fn capabilities(row_workgroup: u32, workgroup_bytes: u32, shuffle_lanes: u32) -> Capabilities {
        Capabilities {
            shuffle_lanes,
            max_binding_bytes: 1 << 27,
            max_buffer_bytes: 1 << 28,
            offset_alignment: 256,
            row_workgroup,
            workgroup_bytes,
            sort_len: 2048,
            max_workgroups: 65_535,
            layers_at_once: true,
            array_elements: 0,
            serial: false,
            wide: false,
        }
    }

    fn geometry(len: u32, dtype: Dtype, order: Order) -> (KvShape, Policy) {
        let spec = TensorSpec::new(dtype, 128);
        let shape = KvShape { num_layers: 1, batch_size: 1, num_kv_heads: 1, capacity: len, keys: spec, values: spec };
        (shape, Policy { order, ..Policy::new(Budget::keep_ratio(0.5)) })
    }

    /// The fewest rows that are taken whole.
    #[test]
    fn short_rows_are_taken_whole_where_they_are_few() {
        use Dtype::{Bf16, F16};
        use Order::{Fill, Positional};
        let (wide, narrow) = (capabilities(1024, 49_152, 32), capabilities(256, 16_384, 0));
        for (len, dtype, order, is_alone, expected) in [
            (256, F16, Positional, true, [8, 96]),
            (512, F16, Fill, true, [16, 64]),
            (1024, Bf16, Positional, true, [48, 96]),
            (2048, F16, Fill, true, [64, 64]),
            (2048, F16, Positional, true, [96, 96]),
            (4096, Bf16, Fill, true, [96, 96]),
            (4096, F16, Fill, true, [64, 64]),
            (8192, F16, Fill, true, [96, 96]),
            (512, F16, Fill, false, [48, 48]),
            (8192, F16, Fill, false, [96, 96]),
        ] {
            let (shape, policy) = geometry(len, dtype, order);
            let fewest = [wide, narrow].map(|capabilities| {
                let is_full = |&rows: &u64| fills_card((&shape, len), &policy, &capabilities, (rows, is_alone));
                (1..200).find(is_full).unwrap_or(0)
            });
            assert_eq!(fewest, expected, "rows of {len} {dtype:?}, {order:?}");
        }
    }

    /// (invocations, words of slots; none in parts) by workgroup memory and reduction, as the README has it.
    #[test]
    fn kernels_fit_workgroup_memory() {
        let kib = [16, 24, 32, 48];
        for (len, num_rows, subgroups, expected) in [
            (2048, 300, 32, [Some((256, Some(0))); 4]),
            (2048, 300, 0, [Some((256, Some(0))); 4]),
            (4096, 300, 32, [None, Some((512, Some(4096))), Some((512, Some(4096))), Some((512, Some(4096)))]),
            (4096, 300, 0, [None, None, Some((512, Some(0))), Some((512, Some(4096)))]),
            (8192, 300, 32, [None, Some((1024, None)), Some((1024, None)), Some((1024, Some(8192)))]),
            (8192, 300, 0, [None, None, None, Some((1024, None))]),
            (
                2048,
                100,
                32,
                [Some((256, Some(0))), Some((1024, Some(2048))), Some((1024, Some(2048))), Some((1024, Some(2048)))],
            ),
            (4096, 4, 32, [Some((256, None)), Some((512, None)), Some((512, None)), Some((512, None))]),
            (4097, 4, 32, [None, Some((1024, None)), Some((1024, None)), Some((1024, None))]),
            (4097, 4, 0, [None, None, Some((512, None)), Some((1024, None))]),
            (8192, 4, 0, [None, None, Some((512, None)), Some((1024, None))]),
            (8193, 66, 32, [None, Some((1024, None)), Some((1024, None)), Some((1024, None))]),
            (8193, 67, 32, [None; 4]),
            (10_112, 4, 32, [None, Some((1024, None)), Some((1024, None)), Some((1024, None))]),
            (10_113, 4, 32, [None, None, Some((1024, None)), Some((1024, None))]),
            (
                4096,
                264,
                32,
                [Some((256, None)), Some((512, Some(4096))), Some((512, Some(4096))), Some((512, Some(4096)))],
            ),
            (14_208, 4, 32, [None, None, Some((1024, None)), Some((1024, None))]),
            (14_209, 4, 32, [None, None, None, Some((1024, None))]),
            (16_384, 4, 32, [None, None, None, Some((1024, None))]),
            (16_385, 4, 32, [None; 4]),
        ] {
            let (shape, policy) = geometry(len, Dtype::F16, Order::Fill);
            let got = kib.map(|kib| {
                let capabilities = capabilities(1024, kib << 10, subgroups);
                let taken = taken((&shape, len), &policy, &capabilities, (num_rows, true));
                taken.map(|taken| (taken.workgroup, taken.slot_words))
            });
            assert_eq!(got, expected, "{num_rows} rows of {len}, shuffles of {subgroups} lanes");
        }
    }

    /// (invocations, words of pairs, most tokens moved) of rows whose norms are cached.
    #[test]
    fn cached_rows_are_taken_where_little_moves_or_rows_are_many() {
        let limits = capabilities(1024, 49_152, 32);
        for (len, num_rows, order, expected) in [
            (512, 256, Order::Fill, Some((256, 0, u32::MAX))),
            (512, 8, Order::Fill, Some((512, 0, 960))),
            (4096, 8, Order::Fill, Some((512, 0, 960))),
            (4097, 8, Order::Fill, Some((1024, 0, 959))),
            (16_384, 16, Order::Fill, Some((1024, 8192, 288))),
            (16_384, 48, Order::Fill, Some((1024, 8192, u32::MAX))),
            (16_385, 48, Order::Fill, None),
            (4096, 95, Order::Positional, None),
            (4096, 96, Order::Positional, Some((512, 0, u32::MAX))),
        ] {
            let (shape, policy) = geometry(len, Dtype::F16, order);
            let policy = Policy { cached_norms: true, ..policy };
            let of = |policy: &Policy, is_alone| {
                let taken = taken((&shape, len), policy, &limits, (num_rows, is_alone));
                taken.map(|taken| (taken.workgroup, taken.pair_words, taken.most_moved))
            };
            assert_eq!(of(&policy, true), expected, "{num_rows} rows of {len}, {order:?}");
            assert_eq!(of(&policy, false), None, "one window of several");
            assert_eq!(of(&Policy { segments: true, ..policy }, true), None, "segments");
        }
    }

    #[test]
    fn rows_by_words_are_taken_where_little_moves() {
        let limits = capabilities(1024, 49_152, 32);
        for (len, num_rows, order, expected) in [
            (4096, 256, Order::Fill, Some(722)),
            (8192, 256, Order::Fill, Some(361)),
            (4096, 256, Order::Positional, None),
        ] {
            let (mut shape, policy) = geometry(len, Dtype::Q8_0, order);
            (shape.keys.head_dim, shape.values.head_dim) = (128, 128);
            let policy = Policy { cached_norms: true, ..policy };
            let taken = taken((&shape, len), &policy, &limits, (num_rows, true)).expect("as by 16 bytes");
            let most = taken.by_words(&shape, order).map(|taken| taken.most_moved);
            assert_eq!(most, expected, "{num_rows} rows of {len}, {order:?}");
            let uncached = Policy { cached_norms: false, ..policy };
            assert!(super::taken((&shape, len), &uncached, &limits, (num_rows, true)).is_none(), "quantised keys");
        }
    }
}
