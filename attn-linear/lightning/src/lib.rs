//! Lightning attention of TransNormerLLM: linear attention with a fixed decay for each head.
//!
//! ```text
//! o_t = sum_{i <= t} exp(-s_h (t - i)) (q_t . k_i) v_i
//! ```
//!
//! A head is a state of fixed size, and the cost of a sequence is linear in its length: see
//! [`mod@reference`] for the equations, and the README for when to use it.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod config;
pub mod reference;

pub use attn_core::{Error, ndarray};
pub use config::{Config, Slopes};
