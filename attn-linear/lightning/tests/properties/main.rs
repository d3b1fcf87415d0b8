//! Laws of the reference, and the device held to it.

mod device;
mod errors;
mod files;
mod forms;
mod gradients;
mod laws;
mod layers;
mod support;
