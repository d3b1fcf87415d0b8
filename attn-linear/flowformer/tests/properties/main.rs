//! Laws of the reference.

mod causal;
mod edges;
mod full;
mod gradients;
mod support;
