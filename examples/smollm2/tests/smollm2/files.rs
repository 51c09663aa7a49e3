//! GGUF files that the model does not take.

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use keynorm_smollm2::gguf::{Config, Gguf};

/// The dimensions of a file that has these keys in place of, or beside, those of a small model, and these tensors.
fn config(keys: &[(&'static str, Value)], tensors: &[&str]) -> anyhow::Result<Config> {
    let mut metadata = vec![
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", Value::U32(1)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.head_count_kv", Value::U32(1)),
        ("llama.embedding_length", Value::U32(8)),
        ("llama.feed_forward_length", Value::U32(16)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.context_length", Value::U32(64)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    metadata.retain(|(key, _)| keys.iter().all(|(other, _)| other != key));
    metadata.extend(keys.iter().cloned());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensor = QTensor::quantize(&Tensor::zeros((5, 8), DType::F32, &Device::Cpu)?, GgmlDType::F32)?;
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|name| (*name, &tensor)).collect();
    let file = tempfile::NamedTempFile::new()?;
    write(&mut file.as_file(), &metadata, &tensors)?;
    Gguf::open(file.path())?.config()
}

#[test]
fn what_the_model_would_ignore_or_lacks_is_refused() {
    const SCALING: &str = "llama.rope.scaling.type";
    let embedding = "token_embd.weight";
    let scaled = |how: &str| [(SCALING, Value::String(how.to_owned()))];
    let small = config(&scaled("none"), &[embedding]).unwrap();
    assert_eq!((small.num_heads, small.num_kv_heads, small.head_dim, small.vocab), (2, 1, 4, 5));
    let heads = |count: u32| [("llama.attention.head_count", Value::U32(count))];
    for (got, expected) in [
        (config(&[], &[]), embedding),
        (config(&heads(0), &[embedding]), "llama.attention.head_count is 0"),
        (config(&[("llama.attention.head_count_kv", Value::U32(0))], &[embedding]), "head_count_kv 0"),
        (config(&scaled("yarn"), &[embedding]), "llama.rope.scaling.type yarn"),
        (config(&[], &[embedding, "rope_freqs.weight"]), "rope_freqs.weight"),
        (config(&[], &[embedding, "blk.0.attn_q.bias"]), "blk.0.attn_q.bias"),
        (config(&[], &[embedding, "blk.3.ffn_up.bias"]), "blk.3.ffn_up.bias"),
    ] {
        let error = format!("{:#}", got.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}
