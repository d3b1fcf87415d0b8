//! Laws of the reference.

mod causal;
mod device;
mod edges;
mod full;
mod gradients;
mod support;
