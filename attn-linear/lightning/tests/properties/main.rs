//! Laws of the reference.

mod errors;
mod files;
mod forms;
mod gradients;
mod laws;
mod layers;
mod support;
