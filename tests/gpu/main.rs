//! GPU against reference: every selector, order, dtype, layout and optional-feature set, with poisoned memory round
//! every row. Needs an adapter; none is a failure.

mod budgets;
mod calibrated;
mod cases;
mod decode;
mod devices;
mod external;
mod f8;
mod large;
mod layers;
mod long;
mod norms;
mod paged;
mod properties;
mod quantised;
mod real_cache;
mod rotate;
mod rotation;
mod rows;
mod running;
mod scores;
mod sizes;
mod state;
mod support;
mod widths;
