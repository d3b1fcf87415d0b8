//! Laws of the reference, and the device against it.

mod collapse;
mod device;
mod laws;
#[cfg(feature = "model")]
mod models;
mod refused;
mod support;
