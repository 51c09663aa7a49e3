//! SmolLM2 (or another Llama-family GGUF) on Burn's wgpu backend, its KV cache compressed in place by keynorm.
//!
//! `model` is the forward pass in Burn's tensor operations, `cache` the KV cache in buffers that Burn allocated and
//! keynorm compresses, `session` both together; every command of the tool is a module of its own.

pub mod cache;
pub mod gguf;
pub mod gpu;
pub mod model;
