//! A KV cache in tensors that Burn allocated, compressed in place by keynorm.
//!
//! A layer's keys and values are tensors [num_kv_heads, capacity, head_dim] of f32, of which the first `len` slots count.
//! Tokens are appended by Burn, in place; keynorm is bound once to the buffers behind the tensors and moves rows within
//! them. Layers differ in length where some are left whole.

use std::any::Any;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use burn::tensor::{Tensor, TensorData};
use burn_wgpu::{AutoCompiler, Wgpu, WgpuResource};
use cubecl::wgpu::WgpuServer;
use keynorm::{
    Bound, Budget, CacheState, Compressor, Dtype, KvShape, KvView, Options, Plan, Policy, Strides, TensorSpec,
    TensorView, wgpu,
};

use crate::gguf::Config;
use crate::gpu::Gpu;

/// Where Burn holds a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The buffer, which other tensors may share.
    pub buffer: wgpu::Buffer,
    /// First byte.
    pub offset: u64,
}

/// A tensor's memory; while it is held, CubeCL neither moves nor reuses it.
type Pin = Box<dyn Any + Send>;

/// Keys and values of a layer. Each is `None` only while Burn writes to it: a second handle would make Burn copy it.
#[derive(Debug)]
struct Layer {
    keys: Option<Tensor<3>>,
    values: Option<Tensor<3>>,
    len: u32,
}

/// The cache of one sequence.
pub struct KvCache {
    gpu: Gpu,
    shape: KvShape,
    layers: Vec<Layer>,
    /// Keys and values of each layer, in turn.
    places: Vec<Place>,
    #[expect(dead_code, reason = "holds Burn's buffers in place")]
    pins: Vec<Pin>,
    compressor: Compressor,
    state: CacheState,
    num_seen: u32,
    /// Tokens that the state on the GPU has not been told of.
    pending: u32,
}

/// keynorm, planned for policies and bound to the buffers of a cache.
#[derive(Debug)]
pub struct Press {
    parts: Vec<(Plan, Bound)>,
}

impl Press {
    /// Bytes of keynorm's scratch.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.parts.iter().map(|(plan, _)| plan.workspace_bytes()).sum()
    }
}

/// A copy of an uncompressed cache, for experiments that try several policies on one prefill.
#[derive(Debug)]
pub struct Snapshot {
    layers: Vec<(Tensor<3>, Tensor<3>)>,
    num_seen: u32,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lens: Vec<_> = self.layers.iter().map(|l| l.len).collect();
        f.debug_struct("KvCache").field("shape", &self.shape).field("lens", &lens).finish_non_exhaustive()
    }
}

impl KvCache {
    /// Has Burn allocate the tensors and looks up the buffers behind them.
    ///
    /// # Errors
    /// A shape that keynorm refuses; a device without room.
    pub fn new(gpu: &Gpu, config: &Config, capacity: usize) -> Result<Self> {
        let spec = TensorSpec::new(Dtype::F32, u32::try_from(config.head_dim)?);
        let shape = KvShape {
            num_layers: u32::try_from(config.num_layers)?,
            batch_size: 1,
            num_kv_heads: u32::try_from(config.num_kv_heads)?,
            capacity: u32::try_from(capacity)?,
            keys: spec,
            values: spec,
        };
        let dims = [config.num_kv_heads, capacity, config.head_dim];
        let tensor = || Tensor::<3>::zeros(dims, &gpu.burn);
        let layers: Vec<_> =
            (0..config.num_layers).map(|_| Layer { keys: Some(tensor()), values: Some(tensor()), len: 0 }).collect();
        let pinned: Vec<_> = tensors(&layers).map(pin).collect::<Result<_>>()?;
        let (places, pins) = pinned.into_iter().unzip();
        let compressor = Compressor::new(&gpu.device, Options::default())?;
        let state = compressor.plan(&shape, &Policy::kvpress(1.0))?.create_state()?;
        Ok(Self { gpu: gpu.clone(), shape, layers, places, pins, compressor, state, num_seen: 0, pending: 0 })
    }

    /// Plans and binds policies of which no two compress the same layer.
    ///
    /// # Errors
    /// As [`Compressor::plan`] and [`Plan::bind`]; a policy that leaves lengths which only the GPU knows.
    pub fn press(&self, policies: &[Policy]) -> Result<Press> {
        policies.iter().try_for_each(|policy| check_followed(policy, &self.shape))?;
        let strides = Strides::hnd(self.shape.num_kv_heads, self.shape.capacity, self.shape.keys.head_dim);
        let views: Vec<_> = self
            .places
            .chunks_exact(2)
            .map(|p| {
                let [keys, values] =
                    [&p[0], &p[1]].map(|p| TensorView { buffer: &p.buffer, offset_bytes: p.offset, strides });
                KvView { keys, values }
            })
            .collect();
        let part = |policy| {
            let plan = self.compressor.plan(&self.shape, policy)?;
            let workspace = plan.create_workspace()?;
            let bound = plan.bind(&self.gpu.device, &views, &self.state, &workspace)?;
            Ok((plan, bound))
        };
        Ok(Press { parts: policies.iter().map(part).collect::<Result<_>>()? })
    }

    /// Compresses every layer that not all policies leave whole: submitted behind Burn's work, ahead of what Burn does
    /// next, and not waited for.
    ///
    /// The tokens must have been appended on the calling thread: CubeCL queues work by thread, and only the calling
    /// thread's is flushed.
    ///
    /// # Errors
    /// As [`Bound::encode`].
    pub fn compress(&mut self, press: &Press) -> Result<()> {
        // What Burn has queued up must be submitted before us.
        self.gpu.burn.flush().map_err(|e| anyhow!("{e:?}"))?;
        let max_len = self.max_len();
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let Some((_, first)) = press.parts.first() else { return Ok(()) };
        if self.pending > 0 {
            self.state.set_append_counts(&self.gpu.queue, 0, &[self.pending])?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            first.record_append(&mut pass, 0)?;
        }
        press.parts.iter().try_for_each(|(_, bound)| bound.encode(&mut encoder, max_len))?;
        self.gpu.queue.submit([encoder.finish()]);
        self.pending = 0;
        for (plan, _) in &press.parts {
            let policy = plan.policy();
            for layer in policy.compressed_layers(self.shape.num_layers) {
                let len = &mut self.layers[layer as usize].len;
                let num_protected = (policy.sinks + policy.recent_of(*len)).min(*len);
                *len = policy.budget_of(layer, 0).tokens(*len, num_protected)?;
            }
        }
        Ok(())
    }

    /// As [`KvCache::compress`], from an idle device to an idle device: the host's time.
    ///
    /// # Errors
    /// As [`KvCache::compress`].
    pub fn compress_timed(&mut self, press: &Press) -> Result<Duration> {
        self.gpu.sync()?;
        let start = Instant::now();
        self.compress(press)?;
        self.gpu.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(start.elapsed())
    }

    /// Fails where `count` more tokens do not fit.
    ///
    /// # Errors
    /// A full cache.
    pub fn reserve(&self, count: usize) -> Result<()> {
        let (len, capacity) = (self.max_len() as usize, self.shape.capacity as usize);
        ensure!(len + count <= capacity, "{len} tokens and {count} new ones, but the cache holds {capacity}");
        Ok(())
    }

    /// Writes new keys and values [num_kv_heads, T, head_dim] behind those of a layer.
    pub fn append(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) {
        let layer = &mut self.layers[layer];
        let [heads, count, dim] = keys.dims();
        let start = layer.len as usize;
        let slots = || [0..heads, start..start + count, 0..dim];
        layer.keys = layer.keys.take().map(|old| old.slice_assign(slots(), keys));
        layer.values = layer.values.take().map(|old| old.slice_assign(slots(), values));
        layer.len += u32::try_from(count).unwrap_or(u32::MAX);
    }

    /// Says that every layer has been given `count` tokens.
    pub fn advance(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.num_seen += count;
        self.pending += count;
    }

    /// A layer's keys and values [num_kv_heads, len, head_dim]: views, not copies.
    ///
    /// # Panics
    /// While the layer is being written.
    #[must_use]
    pub fn view(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        let layer = &self.layers[layer];
        let view = |tensor: &Option<Tensor<3>>| {
            let tensor = tensor.clone().expect("a tensor that is not being written");
            tensor.slice_dim(1, 0..layer.len as usize)
        };
        (view(&layer.keys), view(&layer.values))
    }

    /// Tokens seen so far: the position of the next one.
    #[must_use]
    pub const fn num_seen(&self) -> u32 {
        self.num_seen
    }

    /// Tokens that a layer holds.
    #[must_use]
    pub fn len(&self, layer: usize) -> u32 {
        self.layers[layer].len
    }

    /// Whether no token is in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.max_len() == 0
    }

    /// Tokens of the longest layer.
    #[must_use]
    pub fn max_len(&self) -> u32 {
        self.layers.iter().map(|l| l.len).max().unwrap_or(0)
    }

    /// Tokens of the shortest layer.
    #[must_use]
    pub fn min_len(&self) -> u32 {
        self.layers.iter().map(|l| l.len).min().unwrap_or(0)
    }

    /// Bytes of keys and values that the cache holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let a_token = 2 * u64::from(self.shape.num_kv_heads * self.shape.keys.row_bytes());
        self.layers.iter().map(|l| u64::from(l.len) * a_token).sum()
    }

    /// Bytes of the buffers, whatever they hold.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        let a_token = 2 * u64::from(self.shape.num_kv_heads * self.shape.keys.row_bytes());
        u64::from(self.shape.num_layers) * u64::from(self.shape.capacity) * a_token
    }

    /// Where keynorm is bound to: keys and values of each layer, in turn.
    #[must_use]
    pub fn bound_places(&self) -> &[Place] {
        &self.places
    }

    /// Where Burn holds the tensors now.
    ///
    /// # Errors
    /// What Burn's server says.
    pub fn current_places(&self) -> Result<Vec<Place>> {
        tensors(&self.layers).map(|tensor| Ok(pin(tensor)?.0)).collect()
    }

    /// Fails where Burn has moved a tensor, as it does where another handle lives while it writes.
    ///
    /// # Errors
    /// A moved tensor, and as [`KvCache::current_places`].
    pub fn check_places(&self) -> Result<()> {
        let stayed = self.current_places()? == self.places;
        ensure!(stayed, "Burn has moved the cache: keynorm would have compressed stale buffers");
        Ok(())
    }

    /// The state that keynorm keeps on the GPU. It lags behind by the tokens appended since the last compression.
    #[must_use]
    pub const fn state(&self) -> &CacheState {
        &self.state
    }

    /// The shape that keynorm plans for.
    #[must_use]
    pub const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Layers and KV heads.
    #[must_use]
    pub const fn size(&self) -> (u32, u32) {
        (self.shape.num_layers, self.shape.num_kv_heads)
    }

    /// Empties the cache; the buffers stay.
    ///
    /// # Errors
    /// As [`CacheState::reset_sequence`].
    pub fn clear(&mut self) -> Result<()> {
        self.layers.iter_mut().for_each(|l| l.len = 0);
        (self.num_seen, self.pending) = (0, 0);
        self.state.clear_status(&self.gpu.queue);
        Ok(self.state.reset_sequence(&self.gpu.queue, 0)?)
    }

    /// Copies an uncompressed cache.
    ///
    /// # Errors
    /// A cache that has been compressed: its positions would be lost.
    pub fn snapshot(&self) -> Result<Snapshot> {
        ensure!(self.min_len() == self.num_seen, "only an uncompressed cache can be copied");
        let copy = |view: Tensor<3>| {
            let [heads, len, dim] = view.dims();
            Tensor::zeros([heads, len, dim], &self.gpu.burn).slice_assign([0..heads, 0..len, 0..dim], view)
        };
        let layers = (0..self.layers.len()).map(|layer| {
            let (keys, values) = self.view(layer);
            (copy(keys), copy(values))
        });
        Ok(Snapshot { layers: layers.collect(), num_seen: self.num_seen })
    }

    /// Goes back to a copy.
    ///
    /// # Errors
    /// As [`KvCache::clear`].
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.clear()?;
        for (layer, (keys, values)) in snapshot.layers.iter().enumerate() {
            self.append(layer, keys.clone(), values.clone());
        }
        self.advance(snapshot.num_seen as usize);
        Ok(())
    }
}

/// Refuses policies whose lengths [`KvCache::compress`] does not follow.
fn check_followed(policy: &Policy, shape: &KvShape) -> Result<()> {
    const WHY: &str = "the host follows lengths by the budget of a layer alone";
    ensure!(policy.pool.is_none(), "pool: {WHY}");
    ensure!(!policy.segments, "segments: {WHY}");
    ensure!(policy.min_len == 0, "min_len: {WHY}");
    for layer in policy.compressed_layers(shape.num_layers) {
        let budget = policy.budget_of(layer, 0);
        let is_shared = (1..shape.num_kv_heads).all(|head| policy.budget_of(layer, head) == budget);
        ensure!(is_shared, "budgets differ among the heads of layer {layer}: {WHY}");
        ensure!(!matches!(budget, Budget::MaxNorm(_)), "budget MaxNorm: {WHY}");
    }
    Ok(())
}

fn tensors(layers: &[Layer]) -> impl Iterator<Item = &Tensor<3>> {
    layers.iter().flat_map(|l| [&l.keys, &l.values]).flatten()
}

fn pin(tensor: &Tensor<3>) -> Result<(Place, Pin)> {
    let tensor = tensor.clone().try_into_primitive::<Wgpu>().map_err(|e| anyhow!("not a wgpu tensor: {e:?}"))?;
    let resource = tensor.client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle);
    let resource = resource.map_err(|e| anyhow!("Burn's server has no buffer: {e:?}"))?;
    let WgpuResource { buffer, offset, .. } = resource.resource();
    Ok((Place { buffer: buffer.clone(), offset: *offset }, Box::new(resource)))
}

/// Reads a tensor back as f32.
///
/// # Errors
/// What Burn says.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data: TensorData = tensor.try_into_data().map_err(|e| anyhow!("{e:?}"))?;
    data.try_into_vec::<f32>().map_err(|e| anyhow!("{e:?}"))
}
