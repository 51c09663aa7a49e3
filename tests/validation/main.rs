//! Every refusal, on wgpu's noop backend with faked devices: the variant and its fields, that the object serves on
//! afterwards, and that nothing was recorded.

mod arguments;
mod decode;
mod devices;
mod rotations;
mod scores;
mod support;
