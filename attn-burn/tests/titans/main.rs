//! Titans through burn: the memory and the layers of its reference and of golden files, with all gradients.

#[path = "../common/mod.rs"]
mod common;
mod golden;
mod layers;
mod memory;
