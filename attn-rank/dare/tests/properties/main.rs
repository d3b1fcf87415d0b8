//! The device against the reference, the reference against its definitions and differences, the paper's laws.

mod edges;
mod files;
mod gradients;
mod head;
mod laws;
mod search;
mod serving;
mod support;
