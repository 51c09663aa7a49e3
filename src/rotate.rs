//! Keys turned to the positions of their slots, for runtimes whose positions are slots.

use std::sync::Arc;

use crate::bind::{bind_group, params_binding, range_binding, words_binding};
use crate::check::Placed;
use crate::draft::{tensor_layout, word};
use crate::error::{ArgumentError, BuildError};
use crate::kernel::Checks;
use crate::lattice::Lattice;
use crate::layout::LayoutKind;
use crate::module::{Access, Module};
use crate::params::{RenumberParams, RotateParams, StateLayout};
use crate::params_block::ParamsBlock;
use crate::plan::{Plan, PlanInner, WORKGROUP};
use crate::policy::Order;
use crate::rope::{Pairing, Rope};
use crate::state::CacheState;
use crate::view::{TensorView, check_tensor};
use crate::windows::{LayerWindows, Window, WindowLimits, layer_windows, widest_row};

/// Tokens a workgroup turns.
const TILE: u32 = 64;

/// A rotation bound to the keys of the plan's layers: see [`Plan::bind_rotation`]. `Send + Sync`; keeps its buffers alive.
#[derive(Debug)]
pub struct BoundRotation {
    plan: Arc<PlanInner>,
    rotate: wgpu::ComputePipeline,
    renumber: wgpu::ComputePipeline,
    windows: Vec<(wgpu::BindGroup, u32)>,
    /// Bind group and layers of each run of compressed layers.
    runs: Vec<(wgpu::BindGroup, u32)>,
}

impl BoundRotation {
    /// Records the rotation after a compression in the caller's pass: every key of the compressed layers is turned from its
    /// position to the one that follows its slot, if they differ. `max_len` bounds the lengths at execution: of a longer row
    /// positions are those of its slots all the same, so that what lies far beyond has keys of other positions.
    ///
    /// Afterwards the longest row of each sequence and layer has its slots as positions, shorter ones (where heads have
    /// budgets of their own) end level with it, and `num_seen` is that row's length: where RoPE goes on in that layer.
    /// Cached norms stay as they are: a rotation keeps norms but for rounding.
    ///
    /// # Errors
    /// `max_len` above the capacity; nothing is recorded then.
    ///
    /// # Determinism
    /// The same bits on every device, but for elements below 2⁻¹⁰⁰, whose products a device may flush to zero. An element of 32
    /// bits is within 2⁻²¹ of its pair's length of the exact rotation, one of 16 bits rounded from there to even.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, max_len: u32) -> Result<(), ArgumentError> {
        let limit = self.plan.shape.capacity;
        if max_len > limit {
            return Err(ArgumentError::TooLarge { argument: "max_len", got: max_len.into(), limit: limit.into() });
        }
        if max_len == 0 {
            return Ok(());
        }
        pass.set_pipeline(&self.rotate);
        for (group, num_rows) in &self.windows {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(max_len.div_ceil(TILE), *num_rows, 1);
        }
        pass.set_pipeline(&self.renumber);
        for (group, num_layers) in &self.runs {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups((num_layers * self.plan.shape.batch_size).div_ceil(WORKGROUP), 1, 1);
        }
        Ok(())
    }
}

/// One window before its bind group is made.
struct Draft<'a> {
    buffer: &'a wgpu::Buffer,
    window: Window,
    first_position: u64,
    params: u32,
}

impl Plan {
    /// Binds the keys of every layer (one view a layer; those of skipped layers are not looked at) for
    /// [`BoundRotation::record`]. `rope` is what the keys carry.
    ///
    /// Semantically the same as [`reference::rotate`](crate::reference::rotate).
    ///
    /// Every token of a row is turned, those before [`CacheState::set_first_writable`](crate::CacheState::set_first_writable)
    /// as well: not for sequences that share them. Rows that end level with a longer one begin behind position 0: what they
    /// hold of the first tokens is no sink then. Paged caches cannot be bound.
    ///
    /// # Errors
    /// A plan of [`Order::Fill`], whose slots are out of order: positions that follow them would change the order of the
    /// tokens. One with segments, which are ranges of original positions. One with cached scores by KeyDiff, which compare keys
    /// with those that were dropped, or a state that has such scores. Rows that are larger than a binding. Else as [`Plan::bind`]
    /// and [`Rope::check`].
    pub fn bind_rotation(
        &self,
        device: &wgpu::Device,
        keys: &[TensorView<'_>],
        state: &CacheState,
        rope: &Rope,
    ) -> Result<BoundRotation, BuildError> {
        let mut checks = Checks::default();
        let bound = self.rotation(device, keys, state, rope, &mut checks)?;
        self.inner.kernels.finish(checks)?;
        Ok(bound)
    }

    /// As [`Plan::bind_rotation`], waiting until the device's answers are in.
    ///
    /// # Errors
    /// As [`Plan::bind_rotation`].
    pub async fn bind_rotation_async(
        &self,
        device: &wgpu::Device,
        keys: &[TensorView<'_>],
        state: &CacheState,
        rope: &Rope,
    ) -> Result<BoundRotation, BuildError> {
        let mut checks = Checks::default();
        let bound = self.rotation(device, keys, state, rope, &mut checks)?;
        self.inner.kernels.finish_async(checks).await?;
        Ok(bound)
    }

    fn rotation(
        &self,
        device: &wgpu::Device,
        keys: &[TensorView<'_>],
        state: &CacheState,
        rope: &Rope,
        checks: &mut Checks,
    ) -> Result<BoundRotation, BuildError> {
        let inner = &self.inner;
        check(inner, device, keys, state, rope)?;
        let sequences = inner.shape.num_layers * inner.shape.batch_size;
        let longest = inner.shape.capacity.div_ceil(TILE).max(sequences.div_ceil(WORKGROUP));
        inner.kernels.capabilities.check_grid(longest.into())?;
        let mut params = ParamsBlock::default();
        let mut drafts = Vec::new();
        let mut placed = Placed::default();
        placed.add_state(state);
        for &layer in &inner.layers {
            let view = &keys[layer as usize];
            let lattice = check_tensor("keys", &inner.shape, &inner.shape.keys, view)?;
            placed.add(view.buffer, lattice)?;
            for window in windows(inner, &lattice)? {
                let state_row =
                    u64::from(layer) * u64::from(inner.shape.rows_per_layer()) + u64::from(window.first_row);
                let first_position = state_row * u64::from(inner.shape.capacity) / 64 * 64;
                let block = rotate_params(inner, rope, layer, &lattice, &window, first_position);
                drafts.push(Draft { buffer: view.buffer, window, first_position, params: params.push(&block) });
            }
        }
        let runs: Vec<(u32, u32)> = runs(&inner.layers)
            .map(|(first_layer, num_layers)| {
                let state = StateLayout::new(&inner.shape, 0);
                let block = RenumberParams { state, first_layer, num_layers, pad0: 0, pad1: 0 };
                (params.push(&block), num_layers)
            })
            .collect();
        let params = params.into_buffer(device, "keynorm.rotate.params", wgpu::BufferUsages::UNIFORM, checks);
        Ok(bound(self, state, rope, (&drafts, &runs), &params, checks))
    }
}

fn check(
    inner: &PlanInner,
    device: &wgpu::Device,
    keys: &[TensorView<'_>],
    state: &CacheState,
    rope: &Rope,
) -> Result<(), ArgumentError> {
    if inner.kernels.device != *device {
        return Err(ArgumentError::WrongDevice { argument: "device" });
    }
    if inner.policy.order == Order::Fill {
        return Err(ArgumentError::Unsupported { what: "a rotation to slots that are out of order (Order::Fill)" });
    }
    if inner.policy.segments {
        let what = "a rotation with Policy::segments, which are ranges of original positions";
        return Err(ArgumentError::Unsupported { what });
    }
    if inner.policy.caches_sums() || state.key_sums().is_some() {
        let what = "a rotation with cached scores by KeyDiff, which it would change";
        return Err(ArgumentError::Unsupported { what });
    }
    rope.check(&inner.shape.keys)?;
    crate::state::check_count("keys", keys.len(), inner.shape.num_layers as usize)?;
    if state.shape != inner.shape {
        return Err(ArgumentError::WrongPlan { argument: "state" });
    }
    Ok(())
}

fn windows(inner: &PlanInner, keys: &Lattice) -> Result<Vec<Window>, ArgumentError> {
    let c = &inner.kernels.capabilities;
    let limits = WindowLimits {
        max_binding_bytes: c.max_binding_bytes,
        offset_alignment: c.offset_alignment,
        max_rows: c.max_workgroups.min(inner.scratch.max_rows(c.max_binding_bytes)),
    };
    match layer_windows((keys, keys), None, false, limits) {
        LayerWindows::Rows { windows, .. } => Ok(windows),
        LayerWindows::Bands { .. } => {
            let (row_bytes, limit) = (widest_row(keys, limits), limits.max_binding_bytes);
            Err(ArgumentError::RowExceedsBinding { argument: "keys", row_bytes, limit })
        }
    }
}

fn rotate_params(
    inner: &PlanInner,
    rope: &Rope,
    layer: u32,
    lattice: &Lattice,
    window: &Window,
    first_position: u64,
) -> RotateParams {
    let tensor = tensor_layout(lattice, window.first_row, window.keys, Access::Word);
    let element_bytes = inner.shape.keys.dtype.size_bytes();
    let interleaved = rope.pairing == Pairing::Interleaved;
    // A unit is a word with its partner; of 16 bits and interleaved, a word alone.
    let units = if interleaved { rope.rotary_dim / 2 } else { rope.rotary_dim / 2 * element_bytes / 4 };
    RotateParams {
        state: StateLayout::new(&inner.shape, first_position),
        num_rows: window.num_rows,
        first_row: window.first_row,
        layer,
        batch_stride: tensor.batch_stride,
        head_stride: tensor.head_stride,
        token_stride: tensor.token_stride,
        base: tensor.base,
        first_sequence: window.first_row / inner.shape.num_kv_heads,
        units,
        pair_offset: if interleaved { 1 } else { rope.rotary_dim / 2 * element_bytes / 4 },
        unit_words: if interleaved { element_bytes / 2 } else { 1 },
        pad0: 0,
    }
}

/// First layer and number of layers of each run without a gap.
fn runs(layers: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    layers.chunk_by(|a, b| a + 1 == *b).map(|run| (run[0], word(run.len() as u64)))
}

fn bound(
    plan: &Plan,
    state: &CacheState,
    rope: &Rope,
    (drafts, runs): (&[Draft<'_>], &[(u32, u32)]),
    params: &wgpu::Buffer,
    checks: &mut Checks,
) -> BoundRotation {
    let inner = &plan.inner;
    let kernels = &inner.kernels;
    let turns: Vec<u32> = rope.turns().iter().flat_map(|&t| [word(t), word(t >> 32)]).collect();
    let turns = ParamsBlock(bytemuck::cast_slice(&turns).to_vec());
    let turns = turns.into_buffer(&kernels.device, "keynorm.rotate.turns", wgpu::BufferUsages::STORAGE, checks);
    let workgroup = ("WG_SIZE", f64::from(WORKGROUP));
    let interleaved = rope.pairing == Pairing::Interleaved;
    let constants = [workgroup, ("TILE", f64::from(TILE)), ("INTERLEAVED", f64::from(u8::from(interleaved)))];
    let rotate = kernels.pipeline(Module::Rotate { dtype: inner.shape.keys.dtype }, "rotate", &constants, checks);
    let renumber = kernels.pipeline(Module::Renumber, "renumber", &[workgroup], checks);
    let window_group = |d: &Draft<'_>, checks: &mut Checks| {
        let position_words = u64::from(d.window.num_rows) * u64::from(inner.shape.capacity) + 64;
        let bindings = [
            params_binding::<RotateParams>(params, d.params),
            range_binding(d.buffer, d.window.keys),
            state.meta().as_entire_binding(),
            words_binding(state.positions(), d.first_position, position_words),
            turns.as_entire_binding(),
        ];
        (bind_group(kernels, LayoutKind::Rotate, &bindings, checks), d.window.num_rows)
    };
    let windows = drafts.iter().map(|d| window_group(d, checks)).collect();
    let run_group = |&(offset, num_layers): &(u32, u32), checks: &mut Checks| {
        let bindings = [params_binding::<RenumberParams>(params, offset), state.meta().as_entire_binding()];
        (bind_group(kernels, LayoutKind::Renumber, &bindings, checks), num_layers)
    };
    let runs = runs.iter().map(|run| run_group(run, checks)).collect();
    BoundRotation { plan: Arc::clone(inner), rotate, renumber, windows, runs }
}
