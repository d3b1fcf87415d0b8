//! Routing Transformer: tokens attend within clusters that online k-means finds.
//!
//! The choice of tokens is not causal: see [`mod@reference`] and the README.

mod config;
pub mod reference;

pub use attn_core::ndarray;
pub use config::{Config, UpdateRule};
