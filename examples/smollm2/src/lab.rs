//! Model, tokenizer and cache together, and the steps that all commands share.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use burn::tensor::Tensor;
use keynorm::Policy;
use tokenizers::Tokenizer;

use crate::cache::{KvCache, Snapshot, read};
use crate::gguf::Gguf;
use crate::gpu::Gpu;
use crate::model::Model;

/// Tokens of a forward pass of a prefill: bounds the attention weights in memory.
pub const CHUNK: usize = 512;

/// A loaded model with a cache of one sequence.
#[derive(Debug)]
pub struct Lab {
    /// The device.
    pub gpu: Gpu,
    /// The model on it.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its cache.
    pub cache: KvCache,
}

/// How well a row of tokens was predicted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// Negative logarithm of each token's probability, nats.
    pub nll: Vec<f64>,
    /// Tokens that had the highest probability.
    pub hits: usize,
}

impl Score {
    /// Adds another row.
    pub fn extend(&mut self, other: &Self) {
        self.nll.extend(&other.nll);
        self.hits += other.hits;
    }

    /// exp(mean NLL).
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll.iter().sum::<f64>() / self.nll.len() as f64).exp()
    }
}

impl Lab {
    /// Loads a model and allocates a cache.
    ///
    /// # Errors
    /// No model, no adapter, no room.
    pub fn new(model: &Path, adapter: Option<&str>, capacity: usize) -> Result<Self> {
        // The model first: without it nothing else matters.
        let mut gguf = Gguf::open(model)?;
        let tokenizer = gguf.tokenizer()?;
        let gpu = Gpu::new(adapter)?;
        let model = Model::load(&mut gguf, &gpu)?;
        let cache = KvCache::new(&gpu, &model.config, capacity)?;
        Ok(Self { gpu, model, tokenizer, cache })
    }

    /// Says so where a text is longer than those that the model was trained on.
    pub fn note_length(&self, len: usize) {
        let context = self.model.config.context;
        if len > context {
            eprintln!("note: texts of up to {len} tokens, and the model has been trained on {context}");
        }
    }

    /// Text as tokens; special tokens are recognised, none are added.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false).map_err(|e| anyhow!("{e}"))?.get_ids().to_vec())
    }

    /// Tokens as text.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, false).map_err(|e| anyhow!("{e}"))
    }

    /// Runs tokens through the model in chunks; the logits of the last one.
    ///
    /// # Errors
    /// No tokens, a full cache.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        ensure!(!tokens.is_empty(), "nothing to run the model on: the prompt is empty");
        let mut last = None;
        for chunk in tokens.chunks(CHUNK) {
            last = Some(self.model.forward(chunk, 1, &mut self.cache)?);
        }
        last.map_or_else(|| Ok(Vec::new()), read)
    }

    /// Starts over with a prompt.
    ///
    /// # Errors
    /// As [`Lab::feed`].
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.cache.clear()?;
        self.feed(tokens)
    }

    /// Feeds `inputs` in one pass and scores how well `targets`, one an input, were predicted.
    ///
    /// # Errors
    /// As [`Lab::feed`].
    pub fn score(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Score> {
        let mut score = Score::default();
        for (inputs, targets) in inputs.chunks(256).zip(targets.chunks(256)) {
            let logits = self.model.forward(inputs, inputs.len(), &mut self.cache)?;
            score.extend(&score_logits(logits, targets)?);
        }
        Ok(score)
    }

    /// Goes back to a snapshot and compresses it.
    ///
    /// # Errors
    /// As [`KvCache::restore`], [`KvCache::press`] and [`KvCache::compress`].
    pub fn compress_copy(&mut self, snapshot: &Snapshot, policies: &[Policy]) -> Result<()> {
        self.cache.restore(snapshot)?;
        let press = self.cache.press(policies)?;
        self.cache.compress(&press)
    }

    /// Feeds `tokens` and goes on greedily for at most `count` tokens, while `goes_on` likes the text so far.
    ///
    /// # Errors
    /// As [`Lab::feed`].
    pub fn answer(&mut self, tokens: &[u32], count: usize, goes_on: impl Fn(&str) -> bool) -> Result<String> {
        let mut next = argmax(&self.feed(tokens)?);
        let mut answer = vec![next];
        while answer.len() < count && next != self.model.config.eos && goes_on(&self.decode(&answer)?) {
            next = argmax(&self.feed(&[next])?);
            answer.push(next);
        }
        self.decode(&answer)
    }
}

/// The token of the highest logit; of equals the first.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (ix, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = ix;
        }
    }
    u32::try_from(best).unwrap_or(u32::MAX)
}

fn score_logits(logits: Tensor<2>, targets: &[u32]) -> Result<Score> {
    let vocab = logits.dims()[1];
    let mut score = Score::default();
    for (row, &target) in read(logits)?.chunks_exact(vocab).zip(targets) {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - highest).exp()).sum();
        score.nll.push(sum.ln() + f64::from(highest - row[target as usize]));
        score.hits += usize::from(argmax(row) == target);
    }
    Ok(score)
}
