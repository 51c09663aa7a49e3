//! The pipelines that select what stays, and keep the cache state.

use crate::kernel::{Checks, Kernels};
use crate::module::Module;
use crate::plan::{SELECT_TILE, WORKGROUP};
use crate::policy::{Order, Policy, Selector};
use crate::score_tiles::ScoreTiles;

/// Tiles of a row up to which each finds the threshold for itself. See `benches/record`.
pub(crate) const MANY_TILES: u32 = 128;

/// Tiles that a workgroup may take where all rows together have so many, ascending: more than one where they are more than
/// find room at once; on a CPU where as many workgroups are left as a few cores run. See `benches/record`.
fn tiles_each(serial: bool, num_tiles: u64) -> impl Iterator<Item = u32> {
    let (eaches, workgroups): (&[u32], u64) = if serial { (&[1, 8], 8) } else { (&[1, 2, 4], 512) };
    eaches.iter().copied().filter(move |&each| each == 1 || u64::from(each) * workgroups <= num_tiles)
}

#[derive(Debug)]
pub(crate) struct SelectPipelines {
    /// By workgroups of [`WORKGROUP`], twice that, and of [`Capabilities::row_workgroup`](crate::device::Capabilities).
    pub radix_rows: [wgpu::ComputePipeline; 3],
    /// Of longer rows, two eights an invocation.
    pub radix_pairs: Option<wgpu::ComputePipeline>,
    pub count_digits: wgpu::ComputePipeline,
    /// By workgroups that take ever more tiles of a row; none of the bitonic selector.
    pub long: Vec<LongPipelines>,
    /// Where rows may have more than [`MANY_TILES`].
    pub settle: Option<wgpu::ComputePipeline>,
    pub bitonic: Option<BitonicPipelines>,
    pub order: Option<OrderPipelines>,
    pub reserve: Option<wgpu::ComputePipeline>,
    /// `count` and `pick`.
    pub pool: Option<[wgpu::ComputePipeline; 2]>,
    pub finish: wgpu::ComputePipeline,
    pub append: wgpu::ComputePipeline,
    pub truncate: wgpu::ComputePipeline,
    pub mark_scored: wgpu::ComputePipeline,
}

/// From cached norms to order keys.
#[derive(Debug)]
pub(crate) struct OrderPipelines {
    plain: wgpu::ComputePipeline,
    /// With the histogram fused, of ever more tokens: as many as the plan may have.
    fused: Vec<wgpu::ComputePipeline>,
}

impl OrderPipelines {
    /// Rounds of four tokens an invocation, and the tokens of all rows from which on it takes so many, since each workgroup adds
    /// its histogram to the row's. See `benches/record`.
    const ROUNDS: [(u32, u64); 3] = [(1, 0), (2, 1 << 19), (4, 1 << 21)];

    /// What is dispatched for so many tokens of all rows, and tokens of a workgroup.
    pub fn of(&self, fused: bool, num_tokens: u64) -> (&wgpu::ComputePipeline, u32) {
        let tile = 4 * WORKGROUP;
        let of_tokens = self.fused.iter().zip(Self::rounds(num_tokens)).filter(|_| fused).last();
        of_tokens.map_or((&self.plain, tile), |(pipeline, rounds)| (pipeline, tile * rounds))
    }

    fn rounds(num_tokens: u64) -> impl Iterator<Item = u32> {
        Self::ROUNDS.into_iter().filter(move |&(_, from)| num_tokens >= from).map(|(rounds, _)| rounds)
    }

    /// `fused`: the most tokens of all rows, where they may be counted.
    fn new(kernels: &Kernels, fused: Option<u64>, checks: &mut Checks) -> Self {
        let mut pipeline = |entry, rounds: u32| {
            let constants = [("WG_SIZE", WORKGROUP.into()), ("ROUNDS", rounds.into())];
            kernels.pipeline(Module::Order, entry, &constants, checks)
        };
        let plain = pipeline("order", 1);
        let rounds = fused.into_iter().flat_map(Self::rounds);
        Self { plain, fused: rounds.map(|rounds| pipeline("count_order", rounds)).collect() }
    }
}

/// Of rows that no workgroup holds.
#[derive(Debug)]
pub(crate) struct LongPipelines {
    /// Tiles that a workgroup takes, one after the other.
    pub each: u32,
    pub collect: wgpu::ComputePipeline,
    pub emit: wgpu::ComputePipeline,
    /// After `settle`.
    pub emit_settled: Option<wgpu::ComputePipeline>,
}

#[derive(Debug)]
pub(crate) struct BitonicPipelines {
    pub row: wgpu::ComputePipeline,
    pub tiles: wgpu::ComputePipeline,
    pub step: wgpu::ComputePipeline,
    pub merge: wgpu::ComputePipeline,
    pub pick: wgpu::ComputePipeline,
    /// `collect` and `emit` of rows whose threshold is known.
    pub collect: wgpu::ComputePipeline,
    pub emit: wgpu::ComputePipeline,
}

impl SelectPipelines {
    /// The pipelines for so many tiles of all rows, no more than the plan has. Not of the bitonic selector.
    pub fn long_of(&self, serial: bool, num_tiles: u64) -> &LongPipelines {
        &self.long[tiles_each(serial, num_tiles).count() - 1]
    }

    pub fn new(
        kernels: &Kernels,
        policy: &Policy,
        (num_rows, capacity): (u64, u32),
        tiles: &ScoreTiles,
        checks: &mut Checks,
    ) -> Self {
        let row_workgroup = kernels.capabilities.row_workgroup;
        let (wide, narrow) = (f64::from(row_workgroup), f64::from(WORKGROUP));
        let sort_len = f64::from(kernels.capabilities.sort_len);
        let in_order = ("IN_ORDER", f64::from(u8::from(policy.order == Order::Positional)));
        let subgroups = kernels.capabilities.shuffle_lanes > 0;
        let mut radix = |entry, (workgroup, pair_words): (u32, u32), scouts: u32| {
            let constants = [
                ("WG_SIZE", f64::from(workgroup)),
                in_order,
                ("SCOUTS", scouts.into()),
                ("PAIR_WORDS", pair_words.into()),
            ];
            kernels.pipeline(Module::Radix { subgroups }, entry, &constants, checks)
        };
        let scouts = kernels.capabilities.scouts_of_rows();
        let radix_rows =
            [WORKGROUP, row_workgroup.min(2 * WORKGROUP), row_workgroup].map(|w| radix("radix_row", (w, 0), scouts));
        let pairs = capacity.min(kernels.capabilities.longest_row()) > kernels.capabilities.longest_of_eights();
        let radix_pairs = pairs.then(|| radix("radix_row", (row_workgroup, 4 * row_workgroup), scouts));
        let count_digits = radix("count_digits", (WORKGROUP, 0), 0);
        let long = |entry, (workgroup, each): (f64, u32), from_sorted: bool, checks: &mut Checks| {
            let settles = entry == "settle";
            let scouts = if from_sorted || settles { 0 } else { kernels.capabilities.scouts_of_parts() };
            let constants = [
                ("WG_SIZE", workgroup),
                in_order,
                ("FROM_SORTED", f64::from(u8::from(from_sorted))),
                ("MORE_TILES", f64::from(u8::from(settles))),
                ("SCOUTS", scouts.into()),
                ("EACH", each.into()),
            ];
            kernels.pipeline(Module::RadixLong { subgroups }, entry, &constants, checks)
        };
        let num_tiles = capacity.div_ceil(SELECT_TILE);
        let by_digits = policy.selector != Selector::Bitonic;
        let settles = by_digits && num_tiles > MANY_TILES;
        let settle = settles.then(|| long("settle", (wide, 1), false, checks));
        let eaches = tiles_each(kernels.capabilities.serial, num_rows * u64::from(num_tiles));
        let by_each = |each| LongPipelines {
            each,
            collect: long("collect", (narrow, each), false, checks),
            emit: long("emit", (narrow, each), false, checks),
            emit_settled: settles.then(|| long("emit", (narrow, each), true, checks)),
        };
        let by_each = eaches.filter(|_| by_digits).map(by_each).collect();
        let bitonic = (!by_digits).then(|| {
            let [collect, emit] = ["collect", "emit"].map(|entry| long(entry, (narrow, 1), true, checks));
            let mut bitonic = |entry, workgroup| {
                let constants = [("WG_SIZE", workgroup), ("SORT_LEN", sort_len), in_order];
                kernels.pipeline(Module::Bitonic, entry, &constants, checks)
            };
            BitonicPipelines {
                row: bitonic("bitonic_row", wide),
                tiles: bitonic("bitonic_tiles", wide),
                step: bitonic("bitonic_step", narrow),
                merge: bitonic("bitonic_merge", wide),
                pick: bitonic("bitonic_pick", narrow),
                collect,
                emit,
            }
        });
        let is_long = by_digits && capacity > kernels.capabilities.longest_row();
        let counted = (is_long && policy.may_fuse()).then_some(num_rows * u64::from(capacity));
        let order = policy.cached_norms.then(|| OrderPipelines::new(kernels, counted, checks));
        let mut other = |module, entry, cached: bool| {
            let mut constants = vec![("WG_SIZE", narrow)];
            if module == Module::State {
                constants.push(("CACHED", f64::from(u8::from(cached))));
                constants.push(("SCORE_TILE", f64::from(tiles.plain)));
            }
            kernels.pipeline(module, entry, &constants, checks)
        };
        let cached = policy.cached_norms;
        Self {
            radix_rows,
            radix_pairs,
            count_digits,
            long: by_each,
            settle,
            bitonic,
            order,
            reserve: policy.segments.then(|| other(Module::Reserve, "reserve", cached)),
            pool: policy.pool.map(|_| ["count", "pick"].map(|entry| other(Module::Pool, entry, cached))),
            finish: other(Module::State, "finish", cached),
            append: other(Module::Append, "append", cached),
            truncate: other(Module::Append, "truncate", cached),
            mark_scored: other(Module::State, "mark_scored", cached),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bands::MOST_SELECTED;
    use crate::plan::ROW_TOKENS;

    #[test]
    fn workgroups_take_more_tiles_where_they_are_many() {
        for (serial, num_tiles, expected) in [
            (false, 1, vec![1]),
            (false, 1023, vec![1]),
            (false, 1024, vec![1, 2]),
            (false, 1 << 20, vec![1, 2, 4]),
            (true, 63, vec![1]),
            (true, 64, vec![1, 8]),
        ] {
            assert_eq!(tiles_each(serial, num_tiles).collect::<Vec<_>>(), expected, "{num_tiles}");
        }
    }

    #[test]
    fn bands_are_moved_as_far_as_workgroups_take_tiles() {
        for serial in [false, true] {
            assert!(tiles_each(serial, u64::MAX).all(|each| MOST_SELECTED.is_multiple_of(each * SELECT_TILE)));
        }
        // Rows that the widest workgroups hold.
        const { assert!(2 * ROW_TOKENS * 1024 <= MOST_SELECTED) };
    }
}
