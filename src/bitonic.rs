//! The dispatches of the bitonic selector.

use crate::bound::{Bound, PARAMS_STRIDE, Path, SelectWindow};
use crate::plan::{SELECT_TILE, WORKGROUP};

impl Bound {
    pub(crate) fn record_bitonic(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        window: &SelectWindow,
        max_len: u32,
        path: Path,
    ) {
        let select = &self.plan.select;
        let (Some(bitonic), Some(group)) = (&select.bitonic, &window.bitonic_group) else {
            return; // the plan builds both for every selector that takes this path
        };
        let rows = window.num_rows;
        pass.set_bind_group(0, group, &[window.params_offset]);
        if path == Path::BitonicRow {
            pass.set_pipeline(&bitonic.row);
            pass.dispatch_workgroups(1, rows, 1);
            return;
        }
        let sort_len = self.plan.kernels.capabilities.sort_len;
        let total = max_len.next_power_of_two().max(sort_len);
        pass.set_pipeline(&bitonic.tiles);
        pass.dispatch_workgroups(total / sort_len, rows, 1);
        let mut offset = window.params_offset + PARAMS_STRIDE;
        for (_, distance) in sort_steps(sort_len, total) {
            pass.set_bind_group(0, group, &[offset]);
            if distance >= sort_len {
                pass.set_pipeline(&bitonic.step);
                pass.dispatch_workgroups(total / 2 / WORKGROUP, rows, 1);
            } else {
                pass.set_pipeline(&bitonic.merge);
                pass.dispatch_workgroups(total / sort_len, rows, 1);
            }
            offset += PARAMS_STRIDE;
        }
        pass.set_bind_group(0, group, &[window.params_offset]);
        pass.set_pipeline(&bitonic.pick);
        pass.dispatch_workgroups(max_len.div_ceil(SELECT_TILE), rows, 1);
        pass.set_bind_group(0, &window.group, &[window.params_offset]);
        for pipeline in [&bitonic.collect, &bitonic.emit] {
            pass.set_pipeline(pipeline);
            pass.dispatch_workgroups(max_len.div_ceil(SELECT_TILE), rows, 1);
        }
    }
}

/// The (size, distance) of each dispatch that merges tiles of `sort_len` into rows of `total`, in order. The last
/// dispatch of a size runs all distances below `sort_len` in workgroup memory.
pub(crate) fn sort_steps(sort_len: u32, total: u32) -> impl Iterator<Item = (u32, u32)> {
    let sizes = (sort_len.trailing_zeros() + 1)..=total.trailing_zeros();
    sizes.flat_map(move |log_size| {
        let distances = (sort_len.trailing_zeros() - 1..log_size).rev();
        distances.map(move |log_distance| (1 << log_size, 1 << log_distance))
    })
}
