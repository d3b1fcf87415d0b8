//! Laws of the reference, the reference against dense attention, and the device against the reference.

mod dense;
mod device;
mod device_stream;
mod edges;
mod gradients;
mod laws;
mod stream;
mod support;
