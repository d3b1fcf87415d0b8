//! A device for tests, and models on it.

use std::sync::OnceLock;

use attn_model::attn_wgpu::{Error, Gpu};

/// The device that tests share; a notice where there is none.
pub fn gpu() -> Option<Gpu> {
    static SHARED: OnceLock<Option<Gpu>> = OnceLock::new();
    SHARED
        .get_or_init(|| match Gpu::new() {
            Ok(gpu) => Some(gpu),
            Err(Error::NoAdapter { .. }) => {
                println!("skipped: no adapter on this machine");
                None
            }
            Err(error) => panic!("{error}"),
        })
        .clone()
}
