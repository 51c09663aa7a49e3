#![doc = include_str!("../README.md")]

mod axes;
mod bands;
mod bind;
mod bitonic;
mod bound;
mod calibrate;
mod check;
mod compressor;
mod criterion;
mod device;
pub mod diagnose;
mod draft;
mod error;
mod first_digit;
pub mod kept;
mod kernel;
mod lattice;
mod layers;
mod layout;
mod module;
mod moves;
mod pages;
#[doc(hidden)]
pub mod params;
mod params_block;
mod plan;
mod policy;
mod ranges;
pub mod reference;
mod rope;
mod rotate;
mod row;
mod row_choice;
mod schedule;
mod score;
mod score_tiles;
mod scouts;
mod select;
mod shape;
mod source;
mod stages;
mod state;
mod tables;
mod view;
mod windows;
mod workspace;

pub use wgpu;

pub use axes::{Axis, AxisKind};
pub use bound::Bound;
pub use calibrate::{Calibration, Candidate, LayerChoice};
pub use compressor::Compressor;
pub use criterion::{ExternalScore, Score};
#[doc(hidden)]
pub use device::ShaderPatch;
pub use device::{Options, Switch, optional_features, recommended_limits};
pub use error::{ArgumentError, BuildError, ReadError};
#[doc(hidden)]
pub use module::{Module, Reduction, Tokens};
pub use pages::{FreedPages, PageShape, PageTable, PagedKvView, SequencePages};
pub use plan::Plan;
pub use policy::{Budget, BudgetOverride, Direction, Order, Policy, Pool, Rounding, Selector};
pub use rope::{Frequencies, Pairing, Rope};
pub use rotate::BoundRotation;
pub use schedule::{Due, Schedule, Trigger};
pub use shape::{Dtype, KvShape, MAX_CAPACITY, MAX_HEAD_DIM, Strides, TensorSpec};
pub use stages::Stages;
pub use state::{CacheState, MAX_SEGMENTS, NUM_APPEND_SLOTS, Segment, StateOffsets, Status};
pub use view::{KvView, TensorView};
pub use workspace::Workspace;
