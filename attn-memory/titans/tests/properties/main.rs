//! Laws of the reference.

mod device;
mod device_back;
mod device_decode;
mod files;
mod forms;
mod gradients;
mod laws;
mod layers;
mod support;
