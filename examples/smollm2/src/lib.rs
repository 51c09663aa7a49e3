//! SmolLM2 (or another Llama-family GGUF) on Burn's wgpu backend, its KV cache compressed in place by keynorm.
//!
//! `model` is the forward pass in Burn's tensor operations and three kernels of its own; `cache` the KV cache in buffers
//! that Burn allocated and keynorm compresses; `lab` holds both. Every command of the tool is a module.

pub mod alr;
pub mod cache;
pub mod calibrate;
pub mod cli;
pub mod generate;
pub mod gguf;
pub mod gpu;
pub mod kernels;
pub mod lab;
pub mod model;
pub mod output;
pub mod perplexity;
pub mod plot;
pub mod retrieval;
pub mod speed;
pub mod strategy;
pub mod text;
