//! Laws of the reference, and the reference against dense attention.

mod dense;
mod edges;
mod gradients;
mod laws;
mod stream;
mod support;
