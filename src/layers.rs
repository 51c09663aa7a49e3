//! Neighbouring layers whose rows one dispatch takes: they lie at even distances in one buffer, or in buffers of their own
//! that are bound as arrays. wgpu puts a barrier between two dispatches that write one buffer, which layer by layer are the
//! scratch's; and a pass takes longer to begin than a dispatch.

use crate::criterion::Score;
use crate::draft::{Builder, CheckedLayer, tensor_layout, word};
use crate::kernel::Checks;
use crate::lattice::Lattice;
use crate::module::{Access, Tokens};
use crate::pages::Views;
use crate::windows::{BoundRange, LayerWindows, Window};

/// Layers that are bound together.
pub(crate) struct LayerRun<'a> {
    pub layers: &'a [CheckedLayer],
    pub tokens: Tokens,
    /// Bytes from one layer to the next, of keys and of values; 0 where they have buffers of their own.
    pub strides: [u64; 2],
    pub windows: LayerWindows,
}

/// A layer of those in an array: its index in the shape, and what of its buffers is bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArrayLayer {
    pub layer: u32,
    pub keys: BoundRange,
    pub values: BoundRange,
}

impl LayerRun<'_> {
    /// The elements of the arrays, where layers are bound so.
    pub fn array(&self) -> Vec<ArrayLayer> {
        let element = |layer: &CheckedLayer| {
            let window = layer.whole_rows()?;
            Some(ArrayLayer { layer: layer.layer, keys: window.keys, values: window.values })
        };
        if self.tokens == Tokens::Arrays { self.layers.iter().filter_map(element).collect() } else { Vec::new() }
    }
}

impl CheckedLayer {
    /// The one window of a layer that is bound at once, keys and values each by themselves.
    fn whole_rows(&self) -> Option<&Window> {
        match &self.windows {
            LayerWindows::Rows { windows, joined: false } if windows.len() == 1 => windows.first(),
            _ => None,
        }
    }
}

impl Builder<'_> {
    pub(crate) fn layer_runs<'a>(&self, layers: &'a [CheckedLayer], views: &Views<'_>) -> Vec<LayerRun<'a>> {
        let mut runs = Vec::new();
        let mut rest = layers;
        while !rest.is_empty() {
            let together = &rest[..self.most_together(rest)];
            // The longer; of one length by strides, the last.
            let runs_from_here = [self.in_arrays(together), self.in_one_buffer(together, views)];
            let longest = runs_from_here.into_iter().flatten().max_by_key(|run| run.layers.len());
            let run = longest.unwrap_or_else(|| self.one_layer(&rest[0]));
            rest = &rest[run.layers.len()..];
            runs.push(run);
        }
        runs
    }

    fn one_layer<'a>(&self, layer: &'a CheckedLayer) -> LayerRun<'a> {
        LayerRun {
            layers: std::slice::from_ref(layer),
            tokens: Tokens::by_table(self.pages.is_some()),
            strides: [0; 2],
            windows: layer.windows.clone(),
        }
    }

    /// How many of these layers, from the first on, a dispatch may take: neighbours in the state, of equal strides, as many
    /// rows as scratch, positions and grids allow.
    fn most_together(&self, layers: &[CheckedLayer]) -> usize {
        let capabilities = &self.kernels().capabilities;
        let shape = &self.plan.shape;
        // Other scores go layer by layer.
        if !capabilities.layers_at_once || self.pages.is_some() || self.plan.policy.score_in_use() != Score::KeyNorm {
            return 1;
        }
        let rows = u64::from(shape.rows_per_layer());
        // Positions are bound from an aligned word on.
        let most_positions = (capabilities.max_binding_bytes / 4 - 64) / u64::from(shape.capacity);
        let most = (u64::from(self.limits().max_rows).min(most_positions) / rows).max(1);
        let first = &layers[0];
        let is_next = |(ix, layer): &(usize, &CheckedLayer)| {
            u64::from(layer.layer) == u64::from(first.layer) + *ix as u64
                && layer.keys.has_strides_of(&first.keys)
                && layer.values.has_strides_of(&first.values)
                && matches!(layer.windows, LayerWindows::Rows { .. })
        };
        let count = layers.iter().enumerate().take_while(is_next).count() as u64;
        usize::try_from(count.min(most).max(1)).unwrap_or(1)
    }

    /// As many of them as lie at even distances within one binding.
    fn in_one_buffer<'a>(&self, layers: &'a [CheckedLayer], views: &Views<'_>) -> Option<LayerRun<'a>> {
        let [first, second, ..] = layers else { return None };
        let buffers = |layer: &CheckedLayer| {
            let view = &views.layers[layer.layer as usize];
            [view.keys.buffer, view.values.buffer]
        };
        let distance = |from: &Lattice, to: &Lattice| to.offset.checked_sub(from.offset);
        let strides = [distance(&first.keys, &second.keys)?, distance(&first.values, &second.values)?];
        let is_even = |(ix, layer): &(usize, &CheckedLayer)| {
            let steps = *ix as u64;
            buffers(layer) == buffers(first)
                && layer.keys.offset == first.keys.offset + steps * strides[0]
                && layer.values.offset == first.values.offset + steps * strides[1]
        };
        let even = layers.iter().enumerate().take_while(is_even).count();
        (2..=even).rev().find_map(|count| {
            let windows = self.window_of(&layers[..count], buffers(first)[0] == buffers(first)[1])?;
            Some(LayerRun { layers: &layers[..count], tokens: Tokens::Strided, strides, windows })
        })
    }

    /// All rows of layers of one buffer, if they fit a binding.
    fn window_of(&self, layers: &[CheckedLayer], same_buffer: bool) -> Option<LayerWindows> {
        let (first, last) = layers.first().zip(layers.last())?;
        let limits = self.limits();
        let (keys, values) = ((first.keys.offset, last.keys.end()), (first.values.offset, last.values.end()));
        let ranges = [keys, values].map(|span| BoundRange::aligned(span, limits));
        let joined = same_buffer && ranges[0].intersects(ranges[1]);
        let both = BoundRange::aligned((keys.0.min(values.0), keys.1.max(values.1)), limits);
        let [keys, values] = if joined { [both; 2] } else { ranges };
        let num_rows = word(layers.len() as u64) * self.plan.shape.rows_per_layer();
        let fits = keys.size.max(values.size) <= limits.max_binding_bytes;
        fits.then(|| LayerWindows::Rows { windows: vec![Window { first_row: 0, num_rows, keys, values }], joined })
    }

    /// As many of them as an array takes, each bound at the same distance from its range.
    fn in_arrays<'a>(&self, layers: &'a [CheckedLayer]) -> Option<LayerRun<'a>> {
        let shape = &self.plan.shape;
        let most = (self.kernels().capabilities.array_elements / 2) as usize;
        let bases = |layer: &CheckedLayer| {
            let window = layer.whole_rows()?;
            let is_vec4 = layer.keys.is_vec4() && layer.values.is_vec4();
            let keys = tensor_layout(&layer.keys, 0, window.keys, Access::Vec4);
            let values = tensor_layout(&layer.values, 0, window.values, Access::Vec4);
            is_vec4.then_some([keys.base, values.base])
        };
        let wanted = bases(&layers[0])?;
        let count = layers.iter().take(most).take_while(|layer| bases(layer) == Some(wanted)).count();
        let window = layers[0].whole_rows()?;
        let num_rows = word(count as u64) * shape.rows_per_layer();
        let windows = LayerWindows::Rows { windows: vec![Window { num_rows, ..*window }], joined: false };
        (count > 1).then(|| LayerRun { layers: &layers[..count], tokens: Tokens::Arrays, strides: [0; 2], windows })
    }

    /// The arrays of a draft, bound as group 1.
    pub(crate) fn arrays_group(
        &self,
        array: &[ArrayLayer],
        views: &Views<'_>,
        checks: &mut Checks,
    ) -> Option<wgpu::BindGroup> {
        let layout = self.kernels().arrays_layout(word(array.len() as u64), checks)?;
        let part = |buffer, range: BoundRange| wgpu::BufferBinding {
            buffer,
            offset: range.start,
            size: wgpu::BufferSize::new(range.size),
        };
        let view = |layer: &ArrayLayer| &views.layers[layer.layer as usize];
        let keys: Vec<_> = array.iter().map(|layer| part(view(layer).keys.buffer, layer.keys)).collect();
        let values: Vec<_> = array.iter().map(|layer| part(view(layer).values.buffer, layer.values)).collect();
        let entry =
            |binding, buffers| wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::BufferArray(buffers) };
        let entries = [entry(0, keys.as_slice()), entry(1, values.as_slice())];
        Some(checks.guard(self.device, "keynorm arrays", || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("keynorm.arrays"),
                layout: &layout,
                entries: &entries,
            })
        }))
    }
}
