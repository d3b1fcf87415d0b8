//! Test support for crates that build on this one (feature `testing`).

mod frame;

use std::sync::OnceLock;
use std::time::Duration;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

pub use self::frame::{Frame, Place};

/// The device that tests of one program share; see [`open`].
pub fn gpu() -> Option<Gpu> {
    static SHARED: OnceLock<Option<Gpu>> = OnceLock::new();
    SHARED.get_or_init(open).clone()
}

/// A machine that does other things besides is no reason to fail: what hangs, hangs longer than that.
const TIMEOUT: Duration = Duration::from_secs(900);

/// A device of one's own, for tests that count what runs on it. `None`, with a printed notice, where
/// there is no adapter at all.
///
/// # Panics
/// Where there is an adapter and it fails: a test must not pass then.
pub fn open() -> Option<Gpu> {
    match Gpu::builder().timeout(TIMEOUT).build() {
        Ok(gpu) => Some(gpu),
        Err(Error::NoAdapter { wanted: None, tried }) if tried.is_empty() => {
            println!("skipped: no adapter on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
