//! The block mask, prompts and the ranker in whole models: small ones with random weights, and SmolLM2 where it is.
#![cfg(feature = "model")]

mod policy;
mod prompts;
mod ranking;
mod smollm2;
mod support;
