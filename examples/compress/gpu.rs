//! The device, and the compression of one layer on it.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use keynorm::{Bound, CacheState, Compressor, Direction, KvShape, KvView, Options, Policy, Status};

use crate::Failure;
use crate::input::{CHUNK_BYTES, Input, Layer, Positions};
use crate::timer::Timer;

/// What became of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Tokens whose key and value moved, over all rows.
    pub num_moved: u64,
    pub seconds: f64,
    /// The seconds are the GPU's own, not the host's wait.
    pub is_gpu_time: bool,
    /// Bytes of keys read, and of keys and values read and written in moves.
    pub traffic_bytes: u64,
    pub status: Status,
}

/// A compressed layer: its buffers still hold it.
#[derive(Debug)]
pub struct Compressed {
    pub outcome: Outcome,
    /// Original positions, slot by slot, a list for each row.
    pub positions: Vec<Vec<u32>>,
}

/// Compresses layers one after the other in the same buffers, which are made anew where the shape changes.
pub struct Runner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    compressor: Compressor,
    policy: Policy,
    timer: Option<Timer>,
    staging: wgpu::Buffer,
    prepared: Option<Prepared>,
    /// First error that no call returned, such as a buffer that the device refused.
    error: Arc<Mutex<Option<String>>>,
}

struct Prepared {
    shape: KvShape,
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    state: CacheState,
    bound: Bound,
}

impl Runner {
    pub fn new(adapter: &wgpu::Adapter, policy: Policy) -> Result<Self, Failure> {
        let timestamps = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: keynorm::optional_features(adapter) | timestamps,
            required_limits: keynorm::recommended_limits(adapter),
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| format!("the adapter: {e}"))?;
        let error = Arc::new(Mutex::new(None));
        let first = Arc::clone(&error);
        // wgpu panics on an error that nobody catches.
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e.to_string());
        }));
        let compressor = Compressor::new(&device, Options::default()).map_err(|e| e.to_string())?;
        let timer = (!timestamps.is_empty()).then(|| Timer::new(&device));
        let staging = buffer(&device, CHUNK_BYTES as u64, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        Ok(Self { device, queue, compressor, policy, timer, staging, prepared: None, error })
    }

    /// Compresses one layer. `read` is told of the bytes as they are read.
    pub fn compress(
        &mut self,
        input: &mut Input,
        layer: &Layer,
        positions: Option<&Positions>,
        read: impl Fn(u64),
    ) -> Result<Compressed, Failure> {
        let ix = self.layer_ix(layer);
        let named = |e: String| format!("layers.{}: {e}", layer.index);
        self.prepare(layer, ix).map_err(named)?;
        let Some(prepared) = &self.prepared else { return Err(named("not prepared".to_owned())) };
        for (tensor, buffer) in [(&layer.keys, &prepared.keys), (&layer.values, &prepared.values)] {
            input.read(tensor, |at, bytes| {
                self.queue.write_buffer(buffer, at, bytes);
                self.queue.submit([]);
                self.wait()?; // else the pieces pile up in memory
                read(bytes.len() as u64);
                Ok(())
            })?;
        }
        self.set_state(prepared, ix, layer, positions).map_err(named)?;
        let (seconds, is_gpu_time) = self.execute(prepared, layer.len()).map_err(named)?;
        let kept =
            pollster::block_on(prepared.state.read(&self.device, &self.queue)).map_err(|e| named(e.to_string()))?;
        self.check().map_err(named)?;
        let kept = kept.layers.into_iter().nth(ix as usize).ok_or_else(|| named("no state".to_owned()))?;
        let num_moved = count_moved(layer, positions, &kept.positions);
        let token_bytes = u64::from(layer.shape.keys.row_bytes() + layer.shape.values.row_bytes());
        let scored = u64::from(layer.shape.rows_per_layer()) * u64::from(layer.len());
        let traffic_bytes = scored * u64::from(layer.shape.keys.row_bytes()) + 2 * num_moved * token_bytes;
        let outcome = Outcome { num_moved, seconds, is_gpu_time, traffic_bytes, status: kept.status };
        Ok(Compressed { outcome, positions: kept.positions })
    }

    /// The layer's index in the plan: 0, except where the hash of a random choice takes the layer into account.
    fn layer_ix(&self, layer: &Layer) -> u32 {
        if matches!(self.policy.direction, Direction::Random { .. }) { layer.index } else { 0 }
    }

    fn prepare(&mut self, layer: &Layer, ix: u32) -> Result<(), Failure> {
        let shape = KvShape { num_layers: ix.saturating_add(1), ..layer.shape };
        if self.prepared.as_ref().is_some_and(|p| p.shape == shape) {
            return Ok(());
        }
        self.prepared = None; // so that old and new are not in memory together
        let policy = Policy { skip_layers: (0..ix).collect(), ..self.policy.clone() };
        let plan = self.compressor.plan(&shape, &policy).map_err(|e| e.to_string())?;
        let tensor = |name: &str, token_bytes: u32| {
            let bytes = u64::from(shape.rows_per_layer()) * u64::from(shape.capacity) * u64::from(token_bytes);
            let largest = self.device.limits().max_buffer_size;
            if bytes > largest {
                return Err(format!("{name} have {bytes} bytes, but the device's max_buffer_size is {largest}"));
            }
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
            Ok(buffer(&self.device, bytes, usage))
        };
        let (keys, values) = (tensor("keys", shape.keys.row_bytes())?, tensor("values", shape.values.row_bytes())?);
        let state = plan.create_state().map_err(|e| e.to_string())?;
        let workspace = plan.create_workspace().map_err(|e| e.to_string())?;
        self.check()?;
        let views = vec![KvView::hnd(&shape, &keys, &values); shape.num_layers as usize];
        let bound = plan.bind(&self.device, &views, &state, &workspace).map_err(|e| e.to_string())?;
        let prepared = Prepared { shape, keys, values, state, bound };
        // Once while it is empty: a driver may compile at the first use.
        self.execute(&prepared, shape.capacity)?;
        self.prepared = Some(prepared);
        Ok(())
    }

    fn set_state(
        &self,
        prepared: &Prepared,
        ix: u32,
        layer: &Layer,
        positions: Option<&Positions>,
    ) -> Result<(), Failure> {
        let shape = &prepared.shape;
        let lengths = vec![layer.len(); shape.batch_size as usize];
        prepared.state.set_lengths(&self.queue, &lengths).map_err(|e| e.to_string())?;
        prepared.state.clear_status(&self.queue);
        if let Some(positions) = positions {
            // The cache goes on from an earlier compression: all its slots have a position of their own.
            let (meta, o) = (prepared.state.meta(), prepared.state.offsets());
            let rows = shape.rows_per_layer();
            let write = |word: u32, data: &[u32]| {
                self.queue.write_buffer(meta, u64::from(word) * 4, bytemuck::cast_slice(data));
            };
            write(o.num_seen + ix * shape.batch_size, &positions.num_seen);
            write(o.compacted + ix * rows, &vec![layer.len(); rows as usize]);
            let first = u64::from(ix) * u64::from(rows) * u64::from(shape.capacity) * 4;
            self.queue.write_buffer(prepared.state.positions(), first, bytemuck::cast_slice(&positions.rows));
        }
        self.queue.submit([]);
        self.wait()
    }

    /// Runs the compression; its seconds, and whether the GPU measured them.
    fn execute(&self, prepared: &Prepared, max_len: u32) -> Result<(f64, bool), Failure> {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let timestamp_writes = self.timer.as_ref().map(Timer::writes);
            let descriptor = wgpu::ComputePassDescriptor { label: Some("compress"), timestamp_writes };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            prepared.bound.record(&mut pass, max_len).map_err(|e| e.to_string())?;
        }
        if let Some(timer) = &self.timer {
            timer.resolve(&mut encoder);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.queue.submit([commands]);
        self.wait()?;
        let wall = start.elapsed().as_secs_f64();
        let elapsed = match &self.timer {
            Some(timer) => timer.read(&self.device, &self.queue)?,
            None => None,
        };
        Ok(elapsed.map_or((wall, false), |seconds| (seconds, true)))
    }

    /// Hands the kept rows of the last layer's keys (or values) to `sink`, in pieces, packed.
    pub fn download(
        &self,
        is_keys: bool,
        kept: u32,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(prepared) = &self.prepared else { return Ok(()) };
        let (source, spec) = match is_keys {
            true => (&prepared.keys, &prepared.shape.keys),
            false => (&prepared.values, &prepared.shape.values),
        };
        let token_bytes = u64::from(spec.row_bytes());
        let row_bytes = u64::from(prepared.shape.capacity) * token_bytes;
        let kept_bytes = u64::from(kept) * token_bytes;
        let total = u64::from(prepared.shape.rows_per_layer()) * kept_bytes;
        let mut done = 0;
        while done < total {
            let size = (CHUNK_BYTES as u64).min(total - done);
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            while at < size {
                let (row, within) = ((done + at) / kept_bytes, (done + at) % kept_bytes);
                let run = (kept_bytes - within).min(size - at);
                encoder.copy_buffer_to_buffer(source, row * row_bytes + within, &self.staging, at, run);
                at += run;
            }
            self.queue.submit([encoder.finish()]);
            let slice = self.staging.slice(..size);
            let (sender, receiver) = mpsc::channel();
            slice.map_async(wgpu::MapMode::Read, move |result| {
                let _ = sender.send(result); // the receiver waits below
            });
            self.wait()?;
            let mapped = receiver.recv().map_err(|e| e.to_string())?;
            mapped.map_err(|e| format!("reading back: {e}"))?;
            sink(done, &slice.get_mapped_range().map_err(|e| e.to_string())?)?;
            self.staging.unmap();
            done += size;
        }
        self.check()
    }

    fn wait(&self) -> Result<(), Failure> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|e| format!("waiting for the device: {e}"))?;
        self.check()
    }

    fn check(&self) -> Result<(), Failure> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take().map_or(Ok(()), Err)
    }
}

fn buffer(device: &wgpu::Device, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor { label: Some("compress"), size, usage, mapped_at_creation: false })
}

/// Slots whose token came from another slot, over all rows: those that hold another position than before.
fn count_moved(layer: &Layer, before: Option<&Positions>, after: &[Vec<u32>]) -> u64 {
    let len = layer.len() as usize;
    let moved_in_row = |(row, list): (usize, &Vec<u32>)| {
        let moved =
            |&(slot, position): &(u32, &u32)| before.map_or(slot, |b| b.rows[row * len + slot as usize]) != *position;
        (0u32..).zip(list).filter(moved).count() as u64
    };
    after.iter().enumerate().map(moved_in_row).sum()
}
