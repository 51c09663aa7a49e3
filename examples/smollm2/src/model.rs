//! The forward pass of a Llama-family model, in Burn's tensor operations: f32, one sequence.

use std::num::TryFromIntError;

use anyhow::{Result, ensure};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::cache::KvCache;
use crate::gguf::{Config, Gguf, Matrix};
use crate::gpu::Gpu;
use crate::kernels::Kernels;

/// One block's matrices, as [inputs, outputs].
#[derive(Debug)]
struct Block {
    /// Queries, keys, values, and queries and keys as RoPE turns them by 90°: outputs are heads of `head_dim`.
    qkv: Tensor<2>,
    out: Tensor<2>,
    /// Gate and up, side by side.
    gate_up: Tensor<2>,
    down: Tensor<2>,
}

/// A model on the GPU.
#[derive(Debug)]
pub struct Model {
    /// Its dimensions.
    pub config: Config,
    device: Device,
    kernels: Kernels,
    /// [vocab, hidden].
    embedding: Tensor<2>,
    /// [hidden, vocab], with columns of zeros up to a multiple of 4.
    head: Tensor<2>,
    blocks: Vec<Block>,
}

/// What an observer sees of a layer.
#[derive(Debug)]
pub struct Seen<'a> {
    /// [num_kv_heads, group · T, len]: row g · T + t is token t of the T that came last, in query head g of the KV head.
    pub weights: &'a Tensor<3>,
    /// [T, hidden]: what the attention's output is added to.
    pub residual: &'a Tensor<2>,
    /// [heads · head_dim, hidden]: what the heads' outputs, side by side, are multiplied by.
    pub out: &'a Tensor<2>,
    /// It already holds the T tokens.
    pub cache: &'a KvCache,
}

/// Looks at the attention of each layer.
pub trait Observer {
    /// Called once a layer.
    ///
    /// # Errors
    /// Its own.
    fn layer(&mut self, layer: usize, seen: &Seen<'_>) -> Result<()>;
}

impl Model {
    /// Dequantises and uploads the matrices. The norms' gains are multiplied into the matrices that follow them.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; a dimension that the kernels do not take.
    pub fn load(gguf: &mut Gguf, gpu: &Gpu) -> Result<Self> {
        let config = gguf.config()?;
        check_dims(&config)?;
        let device = &gpu.burn;
        let mut blocks = Vec::new();
        for layer in 0..config.num_layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let mut read = |part: &str| gguf.matrix(&name(part));
            let gain = read("attn_norm")?;
            let scale = (config.head_dim as f32).powf(-0.5);
            let q = scaled(&halves(read("attn_q")?, config.head_dim), scale);
            let k = halves(read("attn_k")?, config.head_dim);
            let (turned_q, turned_k) = (turned(&q, config.head_dim), turned(&k, config.head_dim));
            let qkv = [q, k, read("attn_v")?, turned_q, turned_k];
            let ffn_gain = read("ffn_norm")?;
            blocks.push(Block {
                qkv: upload(&stacked(&qkv), Some(&gain), device),
                out: upload(&read("attn_output")?, None, device),
                gate_up: upload(&stacked(&[read("ffn_gate")?, read("ffn_up")?]), Some(&ffn_gain), device),
                down: upload(&read("ffn_down")?, None, device),
            });
        }
        let gain = gguf.matrix("output_norm.weight")?;
        let embedding = gguf.matrix("token_embd.weight")?;
        let head = if gguf.has("output.weight") { gguf.matrix("output.weight")? } else { embedding.clone() };
        let shape = [config.vocab, config.hidden];
        for (name, matrix) in [("token_embd", &embedding), ("output", &head)] {
            let got = [matrix.rows, matrix.cols];
            ensure!(got == shape, "{name}.weight is {got:?}, not {shape:?}");
        }
        Ok(Self {
            device: device.clone(),
            kernels: Kernels::new(gpu.is_cpu()),
            embedding: Tensor::from_data(TensorData::new(embedding.data, shape), device),
            head: upload(&padded(head), Some(&gain), device),
            blocks,
            config,
        })
    }

    /// Runs `tokens` at positions `cache.num_seen()` and on, appends their keys and values, and returns the last
    /// `num_logits` rows of logits, [num_logits, vocab]. A token sees the cache and those of `tokens` up to itself.
    ///
    /// # Errors
    /// A cache that is too small.
    pub fn forward(&self, tokens: &[u32], num_logits: usize, cache: &mut KvCache) -> Result<Tensor<2>> {
        self.forward_observed(tokens, num_logits, cache, None)
    }

    /// As [`Model::forward`], with an observer.
    ///
    /// # Errors
    /// As [`Model::forward`], and what the observer returns.
    pub fn forward_observed(
        &self,
        tokens: &[u32],
        num_logits: usize,
        cache: &mut KvCache,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<Tensor<2>> {
        let count = tokens.len();
        cache.reserve(count)?;
        let ids: Vec<i32> = tokens.iter().map(|&t| t.cast_signed()).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &self.device);
        let (cos, sin) = self.rope(cache.num_seen() as usize, count);
        let numbers = |n: usize| Ok::<_, TryFromIntError>(Tensor::from_data([i32::try_from(n)?], &self.device));
        let (rows, logit_rows) = (numbers(count)?, numbers(num_logits)?);
        let mut lens = Lens { count, device: &self.device, made: Vec::new() };
        let mut x = self.embedding.clone().select(0, ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            let c = &self.config;
            let y = self.kernels.linear(self.kernels.rms_norm(x.clone(), c.rms_eps)?, block.qkv.clone(), &rows)?;
            let y = y.reshape([count, 2 * (c.num_heads + c.num_kv_heads) + c.num_kv_heads, c.head_dim]);
            let (turning, turned_from) = (c.num_heads + c.num_kv_heads, c.num_heads + 2 * c.num_kv_heads);
            let straight = y.clone().slice([0..count, 0..turning]);
            let turned = y.clone().slice([0..count, turned_from..turned_from + turning]);
            let roped = straight * cos.clone() + turned * sin.clone();
            let queries = roped.clone().slice([0..count, 0..c.num_heads]).swap_dims(0, 1);
            let keys = roped.slice([0..count, c.num_heads..turning]).swap_dims(0, 1);
            let values = y.slice([0..count, turning..turned_from]).swap_dims(0, 1);
            cache.append(layer, keys, values);
            let weights = self.attention(queries, layer, cache, &mut lens)?;
            if let Some(observer) = observer.as_deref_mut() {
                observer.layer(layer, &Seen { weights: &weights, residual: &x, out: &block.out, cache })?;
            }
            let mixed = weights.matmul(cache.view(layer).1);
            let mixed = mixed.reshape([c.num_heads, count, c.head_dim]).swap_dims(0, 1).reshape([count, c.hidden]);
            x = x + self.kernels.linear(mixed, block.out.clone(), &rows)?;
            let y = self.kernels.linear(self.kernels.rms_norm(x.clone(), c.rms_eps)?, block.gate_up.clone(), &rows)?;
            let gate = y.clone().slice([0..count, 0..c.ffn]);
            let up = y.slice([0..count, c.ffn..2 * c.ffn]);
            x = x + self.kernels.linear(silu(gate) * up, block.down.clone(), &rows)?;
        }
        cache.advance(count);
        let last = x.slice_dim(0, count - num_logits..count);
        let last = self.kernels.rms_norm(last, self.config.rms_eps)?;
        let logits = self.kernels.linear(last, self.head.clone(), &logit_rows)?;
        let vocab = self.config.vocab;
        Ok(if logits.dims()[1] > vocab { logits.slice_dim(1, 0..vocab) } else { logits })
    }

    /// Attention weights of queries [heads, T, head_dim]: the query heads of a KV head are one matrix of group · T rows.
    fn attention(&self, queries: Tensor<3>, layer: usize, cache: &KvCache, lens: &mut Lens<'_>) -> Result<Tensor<3>> {
        let c = &self.config;
        let count = queries.dims()[1];
        let keys = cache.view(layer).0;
        let dims = lens.get(keys.dims()[1])?;
        let rows = queries.reshape([c.num_kv_heads, c.num_heads / c.num_kv_heads * count, c.head_dim]);
        self.kernels.softmax(rows.matmul(keys.swap_dims(1, 2)), &dims)
    }

    /// Cosines and sines of positions, [T, 1, head_dim].
    fn rope(&self, first: usize, count: usize) -> (Tensor<3>, Tensor<3>) {
        let half = self.config.head_dim / 2;
        let base = self.config.rope_base;
        let frequency = |i: usize| base.powf(-((i % half) as f64) / half as f64);
        let table = |f: fn(f64) -> f64| {
            let angles = (first..first + count)
                .flat_map(|p| (0..2 * half).map(move |i| (p, i)))
                .map(|(p, i)| f(p as f64 * frequency(i)) as f32);
            Tensor::from_data(TensorData::new(angles.collect::<Vec<f32>>(), [count, 1, 2 * half]), &self.device)
        };
        (table(f64::cos), table(f64::sin))
    }
}

/// What the softmax is told, by length: layers of equal length share it.
struct Lens<'a> {
    count: usize,
    device: &'a Device,
    made: Vec<(usize, Tensor<1, Int>)>,
}

impl Lens<'_> {
    fn get(&mut self, len: usize) -> Result<Tensor<1, Int>> {
        if let Some((_, dims)) = self.made.iter().find(|(made, _)| *made == len) {
            return Ok(dims.clone());
        }
        let dims = Tensor::from_data([i32::try_from(len)?, i32::try_from(self.count)?], self.device);
        self.made.push((len, dims.clone()));
        Ok(dims)
    }
}

/// Refuses what [`Kernels::linear`] would compute wrongly, and heads that RoPE cannot halve. The vocabulary is padded.
fn check_dims(c: &Config) -> Result<()> {
    ensure!(c.head_dim.is_multiple_of(2), "head_dim is {}, which is odd", c.head_dim);
    let by_fours = [("hidden", c.hidden), ("ffn", c.ffn), ("num_kv_heads * head_dim", c.num_kv_heads * c.head_dim)];
    for (name, size) in by_fours {
        ensure!(size.is_multiple_of(4), "{name} is {size}, which is no multiple of 4");
    }
    Ok(())
}

/// With rows of zeros up to a multiple of 4.
fn padded(mut matrix: Matrix) -> Matrix {
    matrix.rows = matrix.rows.next_multiple_of(4);
    matrix.data.resize(matrix.rows * matrix.cols, 0.0);
    matrix
}

/// GGUF pairs element 2i of a head with 2i + 1 for RoPE; here element i goes with i + half.
fn halves(matrix: Matrix, head_dim: usize) -> Matrix {
    let Matrix { data, rows, cols } = matrix;
    let source = |row: usize| {
        let (head, i) = (row / head_dim, row % head_dim);
        let half = head_dim / 2;
        head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    };
    let data = (0..rows).flat_map(|row| data[source(row) * cols..][..cols].iter().copied()).collect();
    Matrix { data, rows, cols }
}

/// The matrix whose outputs are those of `matrix` turned by 90°: (a, b) → (−b, a).
fn turned(matrix: &Matrix, head_dim: usize) -> Matrix {
    let (half, cols) = (head_dim / 2, matrix.cols);
    let mut data = Vec::with_capacity(matrix.data.len());
    for row in 0..matrix.rows {
        let low = row % head_dim < half;
        let (source, sign) = if low { (row + half, -1.0) } else { (row - half, 1.0) };
        data.extend(matrix.data[source * cols..][..cols].iter().map(|x| sign * x));
    }
    Matrix { data, ..*matrix }
}

fn scaled(matrix: &Matrix, factor: f32) -> Matrix {
    Matrix { data: matrix.data.iter().map(|x| x * factor).collect(), ..*matrix }
}

fn stacked(matrices: &[Matrix]) -> Matrix {
    Matrix {
        data: matrices.iter().flat_map(|m| m.data.iter().copied()).collect(),
        rows: matrices.iter().map(|m| m.rows).sum(),
        cols: matrices[0].cols,
    }
}

/// The transpose on the GPU, each input multiplied by its gain.
fn upload(matrix: &Matrix, gain: Option<&Matrix>, device: &Device) -> Tensor<2> {
    let Matrix { data, rows, cols } = matrix;
    let (rows, cols) = (*rows, *cols);
    let mut transposed = vec![0.0; rows * cols];
    for (row, line) in data.chunks_exact(cols).enumerate() {
        for (col, x) in line.iter().enumerate() {
            transposed[col * rows + row] = x * gain.map_or(1.0, |g| g.data[col]);
        }
    }
    Tensor::from_data(TensorData::new(transposed, [cols, rows]), device)
}

#[cfg(test)]
mod tests {
    use super::{Config, Matrix, check_dims, padded};

    #[test]
    fn dimensions_that_the_kernels_do_not_take_are_named() {
        let config = Config {
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            hidden: 576,
            ffn: 1536,
            vocab: 49_153,
            rope_base: 1e5,
            rms_eps: 1e-5,
            context: 8192,
            eos: 2,
        };
        check_dims(&config).unwrap();
        let refused = [
            ("head_dim is 63", Config { head_dim: 63, ..config.clone() }),
            ("hidden is 578", Config { hidden: 578, ..config.clone() }),
            ("ffn is 1537", Config { ffn: 1537, ..config.clone() }),
            ("num_kv_heads * head_dim is 2", Config { num_kv_heads: 1, head_dim: 2, ..config }),
        ];
        for (expected, config) in refused {
            let error = check_dims(&config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_head_is_padded_to_fours() {
        let matrix = |rows: usize| Matrix { data: vec![1.0; rows * 2], rows, cols: 2 };
        let five = padded(matrix(5));
        assert_eq!((five.rows, five.cols), (8, 2));
        assert!(five.data[..10] == [1.0; 10] && five.data[10..] == [0.0; 6], "{:?}", five.data);
        assert_eq!(padded(matrix(8)).rows, 8);
    }
}
