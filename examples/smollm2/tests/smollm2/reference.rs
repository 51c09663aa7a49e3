//! The same model in candle on the CPU: dequantised matrices, RoPE on pairs (2i, 2i + 1) as the GGUF file has them, no
//! cache, nothing folded.

use std::fs::File;

use anyhow::{Context as _, Result};
use candle_core::quantized::gguf_file::Content;
use candle_core::{D, DType, Device, Tensor};
use keynorm_smollm2::gguf::{Config, Gguf, default_path};

/// Whether a token sees another one: by layer, KV head, token, and token seen.
pub type Sees<'a> = &'a dyn Fn(usize, usize, usize, usize) -> bool;

pub struct Reference {
    config: Config,
    content: Content,
    file: File,
}

impl Reference {
    pub fn open() -> Result<Self> {
        let config = Gguf::open(&default_path())?.config()?;
        let mut file = File::open(default_path())?;
        let content = Content::read(&mut file)?;
        Ok(Self { config, content, file })
    }

    fn weight(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu).context(name.to_owned())?;
        Ok(tensor.dequantize(&Device::Cpu)?)
    }

    /// Logits after every token of each prompt, [T, vocab].
    pub fn logits(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>> {
        self.logits_seeing(prompts, &|_, _, _, _| true)
    }

    /// As [`Reference::logits`], where a token sees of those up to itself only some: by layer, KV head, token, and token seen.
    pub fn logits_seeing(&mut self, prompts: &[Vec<u32>], sees: Sees<'_>) -> Result<Vec<Vec<Vec<f32>>>> {
        let c = self.config.clone();
        let embedding = self.weight("token_embd.weight")?;
        let embed = |tokens: &Vec<u32>| embedding.index_select(&Tensor::new(tokens.as_slice(), &Device::Cpu)?, 0);
        let mut streams: Vec<Tensor> = prompts.iter().map(embed).collect::<candle_core::Result<_>>()?;
        for layer in 0..c.num_layers {
            let mut weight = |part: &str| self.weight(&format!("blk.{layer}.{part}.weight"));
            let (attn_norm, ffn_norm) = (weight("attn_norm")?, weight("ffn_norm")?);
            let [q, k, v, o] = ["attn_q", "attn_k", "attn_v", "attn_output"].map(&mut weight);
            let [gate, up, down] = ["ffn_gate", "ffn_up", "ffn_down"].map(&mut weight);
            let (q, k, v, o, gate, up, down) = (q?, k?, v?, o?, gate?, up?, down?);
            for x in &mut streams {
                let y = norm(x, &attn_norm, c.rms_eps)?;
                let heads = |w: &Tensor, n: usize| -> Result<Tensor> {
                    let y = y.matmul(&w.t()?)?;
                    Ok(y.reshape((y.dim(0)?, n, c.head_dim))?.transpose(0, 1)?.contiguous()?)
                };
                let queries = rope(&heads(&q, c.num_heads)?, c.rope_base)?;
                let keys = rope(&heads(&k, c.num_kv_heads)?, c.rope_base)?;
                let sees = |head: usize, token: usize, seen: usize| sees(layer, head, token, seen);
                let mixed = attend(&queries, &keys, &heads(&v, c.num_kv_heads)?, &sees)?;
                let mixed = mixed.transpose(0, 1)?.reshape((x.dim(0)?, c.hidden))?;
                *x = (&*x + mixed.matmul(&o.t()?)?)?;
                let y = norm(x, &ffn_norm, c.rms_eps)?;
                let inner = (y.matmul(&gate.t()?)?.silu()? * y.matmul(&up.t()?)?)?;
                *x = (&*x + inner.matmul(&down.t()?)?)?;
            }
        }
        let gain = self.weight("output_norm.weight")?;
        let logits = |x: &Tensor| Ok(norm(x, &gain, c.rms_eps)?.matmul(&embedding.t()?)?.to_vec2()?);
        streams.iter().map(logits).collect()
    }
}

fn norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&gain.flatten_all()?)?)
}

/// [heads, T, dim], token t at position t.
fn rope(x: &Tensor, base: f64) -> Result<Tensor> {
    let (heads, count, dim) = x.dims3()?;
    let angle = |t: usize, i: usize| t as f64 * base.powf(-2.0 * i as f64 / dim as f64);
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values = (0..count).flat_map(|t| (0..dim / 2).map(move |i| f(angle(t, i)) as f32));
        Ok(Tensor::from_vec(values.collect::<Vec<_>>(), (1, count, dim / 2), &Device::Cpu)?)
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let pairs = x.reshape((heads, count, dim / 2, 2))?;
    let (a, b) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
    let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let turned_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    Ok(Tensor::stack(&[turned_a, turned_b], 3)?.reshape((heads, count, dim))?)
}

fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sees: &dyn Fn(usize, usize, usize) -> bool,
) -> Result<Tensor> {
    let (heads, count, dim) = queries.dims3()?;
    let group = heads / keys.dim(0)?;
    let head = |h: usize| -> Result<Tensor> {
        let is_seen = |token: usize, seen: usize| seen <= token && sees(h / group, token, seen);
        let mask = (0..count * count).map(|i| if is_seen(i / count, i % count) { 0.0 } else { f32::NEG_INFINITY });
        let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (count, count), &Device::Cpu)?;
        let scores = (queries.get(h)?.matmul(&keys.get(h / group)?.t()?)? / (dim as f64).sqrt())?;
        let scores = (scores + mask)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
        let weights = e.broadcast_div(&e.sum_keepdim(1)?)?;
        Ok(weights.matmul(&values.get(h / group)?)?)
    };
    let mixed: Vec<Tensor> = (0..heads).map(head).collect::<Result<_>>()?;
    Ok(Tensor::stack(&mixed, 0)?.to_dtype(DType::F32)?)
}
