//! The pipelines that select what stays, and keep the cache state.

use crate::kernel::{Checks, Kernels};
use crate::module::Module;
use crate::plan::{SELECT_TILE, WORKGROUP};
use crate::policy::{Order, Policy, Selector};
use crate::score_tiles::ScoreTiles;

/// Tiles of a row up to which each finds the threshold for itself. See `benches/record`.
pub(crate) const MANY_TILES: u32 = 128;

#[derive(Debug)]
pub(crate) struct SelectPipelines {
    /// By workgroups of [`WORKGROUP`], twice that, and of [`Capabilities::row_workgroup`](crate::device::Capabilities).
    pub radix_rows: [wgpu::ComputePipeline; 3],
    pub count_digits: wgpu::ComputePipeline,
    pub collect: wgpu::ComputePipeline,
    pub emit: wgpu::ComputePipeline,
    /// `settle`, and `emit` after it, where rows may have more than [`MANY_TILES`].
    pub settle: Option<[wgpu::ComputePipeline; 2]>,
    pub bitonic: Option<BitonicPipelines>,
    pub order: Option<wgpu::ComputePipeline>,
    pub reserve: Option<wgpu::ComputePipeline>,
    /// `count` and `pick`.
    pub pool: Option<[wgpu::ComputePipeline; 2]>,
    pub finish: wgpu::ComputePipeline,
    pub append: wgpu::ComputePipeline,
    pub mark_scored: wgpu::ComputePipeline,
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
    pub fn new(kernels: &Kernels, policy: &Policy, capacity: u32, tiles: &ScoreTiles, checks: &mut Checks) -> Self {
        let row_workgroup = kernels.capabilities.row_workgroup;
        let (wide, narrow) = (f64::from(row_workgroup), f64::from(WORKGROUP));
        let sort_len = f64::from(kernels.capabilities.sort_len);
        let in_order = ("IN_ORDER", f64::from(u8::from(policy.order == Order::Positional)));
        let subgroups = kernels.capabilities.shuffle_lanes > 0;
        let mut radix = |entry, workgroup: u32| {
            let constants = [("WG_SIZE", f64::from(workgroup)), in_order];
            kernels.pipeline(Module::Radix { subgroups }, entry, &constants, checks)
        };
        let radix_rows = [WORKGROUP, row_workgroup.min(2 * WORKGROUP), row_workgroup].map(|w| radix("radix_row", w));
        let count_digits = radix("count_digits", WORKGROUP);
        let long_by = |entry, workgroup, from_sorted: bool, checks: &mut Checks| {
            let more_tiles = ("MORE_TILES", f64::from(u8::from(entry == "settle")));
            let constants =
                [("WG_SIZE", workgroup), in_order, ("FROM_SORTED", f64::from(u8::from(from_sorted))), more_tiles];
            kernels.pipeline(Module::RadixLong { subgroups }, entry, &constants, checks)
        };
        let long = |entry, from_sorted, checks: &mut Checks| long_by(entry, narrow, from_sorted, checks);
        let [collect, emit] = ["collect", "emit"].map(|entry| long(entry, false, checks));
        let settle = (policy.selector != Selector::Bitonic && capacity > MANY_TILES * SELECT_TILE)
            .then(|| [long_by("settle", wide, false, checks), long("emit", true, checks)]);
        let bitonic = (policy.selector == Selector::Bitonic).then(|| {
            let [collect, emit] = ["collect", "emit"].map(|entry| long(entry, true, checks));
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
            count_digits,
            collect,
            emit,
            settle,
            bitonic,
            order: cached.then(|| other(Module::Order, "order", cached)),
            reserve: policy.segments.then(|| other(Module::Reserve, "reserve", cached)),
            pool: policy.pool.map(|_| ["count", "pick"].map(|entry| other(Module::Pool, entry, cached))),
            finish: other(Module::State, "finish", cached),
            append: other(Module::Append, "append", cached),
            mark_scored: other(Module::State, "mark_scored", cached),
        }
    }
}
