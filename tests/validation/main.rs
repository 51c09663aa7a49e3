//! Every refusal, on wgpu's noop backend with faked devices: the variant and its fields, that the object serves on
//! afterwards, and that nothing was recorded.

mod arguments;
mod axes;
mod decode;
mod devices;
mod paged;
mod rotations;
mod schedules;
mod scores;
mod support;
