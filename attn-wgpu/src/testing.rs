//! Test support for crates that build on this one (feature `testing`).

use std::sync::OnceLock;

use crate::error::Error;
use crate::gpu::Gpu;

/// The device that tests of one program share; see [`open`].
pub fn gpu() -> Option<Gpu> {
    static SHARED: OnceLock<Option<Gpu>> = OnceLock::new();
    SHARED.get_or_init(open).clone()
}

/// A device of one's own, for tests that count what runs on it. `None`, with a printed notice, where
/// there is no adapter at all.
///
/// # Panics
/// Where there is an adapter and it fails: a test must not pass then.
pub fn open() -> Option<Gpu> {
    match Gpu::new() {
        Ok(gpu) => Some(gpu),
        Err(Error::NoAdapter { wanted: None, tried }) if tried.is_empty() => {
            println!("skipped: no adapter on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
