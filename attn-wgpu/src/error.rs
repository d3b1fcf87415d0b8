//! Errors of everything that touches a device.

use std::time::Duration;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong on the way to, on, or back from a device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument was wrong; nothing was recorded.
    #[error(transparent)]
    Core(#[from] attn_core::Error),
    /// No adapter fits the request.
    #[error("no adapter {}; found: {}", wanted.as_deref().map_or("was found".into(), |w| format!("fits {w:?}")), list(tried))]
    NoAdapter {
        /// What was asked for, if anything was.
        wanted: Option<String>,
        /// The adapters there are, as shown by [`crate::AdapterDescription`].
        tried: Vec<String>,
    },
    /// The work needs more than this device has, and cannot be split any further.
    #[error("{what} needs {needed}, and `{limit}` of this device is {available}")]
    Limit {
        /// What needs it.
        what: String,
        /// Name of the limit, as WebGPU spells it.
        limit: &'static str,
        /// How much is needed.
        needed: u64,
        /// How much there is.
        available: u64,
    },
    /// The byte budget of the [`Gpu`](crate::Gpu) or the device's memory is used up. The device
    /// remains usable.
    #[error("out of memory: {requested} bytes requested, {in_use} in use, budget {budget}")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes in use at that moment.
        in_use: u64,
        /// The budget in force; `u64::MAX` where the device itself ran out.
        budget: u64,
    },
    /// The device is gone. Every later call on this [`Gpu`](crate::Gpu) gives the same error; make
    /// a new one to go on.
    #[error("device lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// A kernel does not compile, or wgpu refused a command.
    #[error("kernel `{kernel}`: {reason}")]
    Kernel {
        /// Name of the kernel, or of the operation around it.
        kernel: String,
        /// The compiler's or the validation's message.
        reason: String,
    },
    /// The device did not finish in time. The work may still finish later.
    #[error("the device did not finish within {limit:?}")]
    Timeout {
        /// The time that was waited.
        limit: Duration,
    },
    /// A gradient was asked of something that has none.
    #[error("`{name}` has no derivative")]
    NotDifferentiable {
        /// What has no derivative.
        name: String,
    },
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join("; ") }
}
