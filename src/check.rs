//! What a binding is given, against the plan: views, state and workspace.

use crate::criterion::Score;
use crate::draft::{Builder, CheckedLayer};
use crate::error::{ArgumentError, BuildError};
use crate::lattice::{Lattice, range_lattice};
use crate::pages::{Views, check_pages, check_table, pool_shape, pool_windows};
use crate::shape::{Dtype, KvShape, TensorSpec};
use crate::state::{CacheState, check_count};
use crate::view::{TensorView, check_tensor};
use crate::windows::{LayerWindows, layer_windows, widest_row};

/// One score of the caller's: a word.
const SCORE: TensorSpec = TensorSpec::new(Dtype::F32, 1);
const SCORES: &str = "scores";

/// What lies where, so that nothing is bound over something else.
#[derive(Default)]
pub(crate) struct Placed<'a>(Vec<(&'a wgpu::Buffer, Lattice)>);

impl<'a> Placed<'a> {
    fn check(&self, buffer: &wgpu::Buffer, lattice: &Lattice) -> Result<(), ArgumentError> {
        // Scores are only read.
        let is_shared = |other: &Lattice| [lattice, other].iter().all(|l| l.argument == SCORES);
        let overlaps =
            |other: &&(&wgpu::Buffer, Lattice)| other.0 == buffer && !is_shared(&other.1) && lattice.overlaps(&other.1);
        self.0.iter().find(overlaps).map_or(Ok(()), |(_, other)| {
            Err(ArgumentError::Overlap { first: other.argument, second: lattice.argument })
        })
    }

    pub fn add(&mut self, buffer: &'a wgpu::Buffer, lattice: Lattice) -> Result<(), ArgumentError> {
        self.check(buffer, &lattice)?;
        self.0.push((buffer, lattice));
        Ok(())
    }

    /// The buffers of a state, whole.
    pub fn add_state(&mut self, state: &'a CacheState) {
        for (buffer, argument) in [
            (state.meta(), "state.meta"),
            (state.positions(), "state.positions"),
            (state.status(), "state.status"),
            (state.norms_or_dummy(), "state.key_norms"),
            (state.key_sums_or_dummy(), "state.key_sums"),
        ] {
            self.0.push((buffer, range_lattice(argument, 0, buffer.size())));
        }
    }
}

impl Builder<'_> {
    pub(crate) fn check(&self, views: &Views<'_>) -> Result<Vec<CheckedLayer>, BuildError> {
        let shape = &self.plan.shape;
        if self.kernels().device != *self.device {
            return Err(ArgumentError::WrongDevice { argument: "device" }.into());
        }
        check_count("views", views.layers.len(), shape.num_layers as usize)?;
        let num_scores = if self.plan.policy.takes_scores() { shape.num_layers as usize } else { 0 };
        check_count("scores", views.scores.len(), num_scores)?;
        if self.state.shape != *shape || !self.state.serves(&self.plan.policy) {
            return Err(ArgumentError::WrongPlan { argument: "state" }.into());
        }
        if self.workspace.layout != self.plan.scratch {
            return Err(ArgumentError::WrongPlan { argument: "workspace" }.into());
        }
        let mut placed = Placed::default();
        placed.add_state(self.state);
        let order_keys = self.workspace.order_keys();
        placed.0.push((order_keys, range_lattice("workspace.order_keys", 0, order_keys.size())));
        let tables = self.check_tables(views, &placed)?;
        let tensor_shape = self.pages.map_or(*shape, |pages| pool_shape(&pages, shape));
        placed.0.extend(tables.iter().map(|t| (t.0, t.1)));
        let mut layers = Vec::new();
        for (compressed, &layer) in self.plan.layers.iter().enumerate() {
            let view = &views.layers[layer as usize];
            let keys = check_tensor("keys", &tensor_shape, &shape.keys, &view.keys)?;
            let values = check_tensor("values", &tensor_shape, &shape.values, &view.values)?;
            placed.add(view.keys.buffer, keys)?;
            placed.add(view.values.buffer, values)?;
            let scores = views.scores.get(layer as usize).map(|s| self.check_scores(s, &mut placed)).transpose()?;
            let same_buffer = view.keys.buffer == view.values.buffer;
            let windows = if self.pages.is_some() {
                pool_windows((&keys, &values), same_buffer, shape.rows_per_layer(), self.limits())?
            } else {
                layer_windows((&keys, &values), scores.as_ref(), same_buffer, self.limits())
            };
            self.check_rows(&keys, &values, &windows)?;
            let table = tables.get(compressed).map(|t| t.1);
            let compressed = u32::try_from(compressed).unwrap_or(u32::MAX);
            layers.push(CheckedLayer { compressed, layer, keys, values, scores, windows, table });
        }
        Ok(layers)
    }

    /// Rows of the caller's scores fit a binding: of a contiguous cache each by itself, of a paged one all of a layer, which
    /// windows of pages do not divide. Heads may share them.
    fn check_scores<'v>(&self, view: &TensorView<'v>, placed: &mut Placed<'v>) -> Result<Lattice, ArgumentError> {
        let shape = &self.plan.shape;
        let num_kv_heads = if view.strides.head == 0 { 1 } else { shape.num_kv_heads };
        let of_all = check_tensor(SCORES, &KvShape { num_kv_heads, ..*shape }, &SCORE, view)?;
        placed.add(view.buffer, of_all)?;
        let scores = Lattice { num_kv_heads: shape.num_kv_heads, ..of_all };
        let (limits, limit) = (self.limits(), self.limits().max_binding_bytes);
        let row_bytes = widest_row(&scores, limits);
        if row_bytes > limit {
            return Err(ArgumentError::RowExceedsBinding { argument: SCORES, row_bytes, limit });
        }
        let pool_bytes = scores.end() - scores.offset + limits.offset_alignment;
        if self.pages.is_some() && pool_bytes > limit {
            return Err(ArgumentError::PoolExceedsBinding { argument: SCORES, pool_bytes, limit });
        }
        Ok(scores)
    }

    /// Rows of keys and values fit a binding where their bands are not scored.
    fn check_rows(&self, keys: &Lattice, values: &Lattice, windows: &LayerWindows) -> Result<(), ArgumentError> {
        if matches!(windows, LayerWindows::Rows { .. }) || self.plan.policy.score_in_use() == Score::KeyNorm {
            return Ok(());
        }
        let limits = self.limits();
        let limit = limits.max_binding_bytes;
        let [keys, values] = [keys, values].map(|lattice| (lattice.argument, widest_row(lattice, limits)));
        let (argument, row_bytes) = if keys.1 >= values.1 { keys } else { values };
        if row_bytes > limit {
            return Err(ArgumentError::RowExceedsBinding { argument, row_bytes, limit });
        }
        // They meet between aligned addresses, so that one binding would have to hold both.
        let row_bytes = keys.1 + values.1;
        Err(ArgumentError::RowExceedsBinding { argument: "keys and values", row_bytes, limit })
    }

    /// The tables of the compressed layers. Layers may share one, so tables are not compared with each other.
    fn check_tables<'v>(
        &self,
        views: &Views<'v>,
        placed: &Placed<'_>,
    ) -> Result<Vec<(&'v wgpu::Buffer, Lattice)>, ArgumentError> {
        let Some(pages) = &self.pages else { return Ok(Vec::new()) };
        check_pages(pages, &self.plan.shape)?;
        let limit = self.limits().max_binding_bytes;
        let check = |&layer: &u32| {
            let table = &views.tables[layer as usize];
            let lattice = check_table(table, pages, &self.plan.shape)?;
            placed.check(table.buffer, &lattice)?;
            let pool_bytes = lattice.end() - lattice.offset + self.limits().offset_alignment;
            if pool_bytes > limit {
                return Err(ArgumentError::PoolExceedsBinding { argument: "table", pool_bytes, limit });
            }
            Ok((table.buffer, lattice))
        };
        self.plan.layers.iter().map(check).collect()
    }
}
