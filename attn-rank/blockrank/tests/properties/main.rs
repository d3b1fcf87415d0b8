//! Laws of the reference, and the device against it.

mod device;
mod edges;
mod laws;
mod support;
