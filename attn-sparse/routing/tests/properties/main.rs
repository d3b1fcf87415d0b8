//! Laws of the reference and of the device, and the device against the reference.

mod device;
mod edges;
mod laws;
mod planted;
mod reference;
mod stream;
mod support;
