//! Laws of the reference.

mod device;
mod device_back;
mod device_decode;
mod device_layers;
mod files;
mod forms;
mod gradients;
mod laws;
mod layers;
mod lightning;
mod support;
