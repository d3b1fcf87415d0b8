//! Turns every way in which wgpu reports failure into an [`Error`].
//!
//! wgpu reports through error scopes, through handlers, through results, and by panicking (naga on
//! unusual shaders, `poll` on a lost device, drivers that refuse what they advertise). One guard
//! around each logical operation catches all of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// What the device's handlers have told so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    lost: Arc<AtomicBool>,
    reason: Arc<Mutex<String>>,
    uncaptured: Arc<Mutex<Option<String>>>,
}

impl Health {
    /// Installs handlers on a device of our own. A caller's device keeps its handlers.
    pub(crate) fn install(&self, device: &wgpu::Device) {
        let health = self.clone();
        device.set_device_lost_callback(move |reason, message| {
            health.set_lost(format!("{reason:?}: {message}"));
        });
        let uncaptured = Arc::clone(&self.uncaptured);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&uncaptured).get_or_insert_with(|| error.to_string());
        }));
    }

    pub(crate) fn set_lost(&self, reason: String) {
        if !self.lost.swap(true, Ordering::SeqCst) {
            *lock(&self.reason) = reason;
        }
    }

    /// Fails if the device is lost, or if an error came up outside a guard.
    pub(crate) fn check(&self) -> Result<()> {
        if self.lost.load(Ordering::SeqCst) {
            return Err(Error::DeviceLost { reason: lock(&self.reason).clone() });
        }
        match lock(&self.uncaptured).take() {
            Some(reason) => Err(Error::Kernel { kernel: "outside any operation".into(), reason }),
            None => Ok(()),
        }
    }
}

/// Runs `work` with all error scopes open. `work` must stay on this thread and must not wait.
pub(crate) fn guarded<T>(
    device: &wgpu::Device,
    health: &Health,
    what: &str,
    work: impl FnOnce() -> T,
) -> Result<T> {
    health.check()?;
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    // Scopes are a stack of this thread, popped in reverse order; natively the answers are ready.
    let validation = pollster::block_on(validation.pop());
    let memory = pollster::block_on(memory.pop());
    let internal = pollster::block_on(internal.pop());
    health.check()?;
    if memory.is_some() {
        return Err(Error::OutOfMemory { requested: 0, in_use: 0, budget: u64::MAX });
    }
    let failed = |reason: String| Error::Kernel { kernel: what.into(), reason };
    if let Some(error) = validation.or(internal) {
        return Err(failed(error.to_string()));
    }
    outcome.map_err(|panic| failed(panic_message(panic.as_ref())))
}

/// Waits until `submission` is done.
///
/// # Errors
/// [`Error::Timeout`], or [`Error::DeviceLost`] (`poll` panics when the driver reports loss).
pub(crate) fn wait(
    device: &wgpu::Device,
    health: &Health,
    submission: Option<wgpu::SubmissionIndex>,
    limit: std::time::Duration,
) -> Result<()> {
    let poll = wgpu::PollType::Wait { submission_index: submission, timeout: Some(limit) };
    let outcome = catch_unwind(AssertUnwindSafe(|| device.poll(poll)));
    health.check()?;
    match outcome {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(wgpu::PollError::Timeout)) => Err(Error::Timeout { limit }),
        Ok(Err(error)) => Err(Error::Kernel { kernel: "wait".into(), reason: error.to_string() }),
        Err(panic) => {
            health.set_lost(panic_message(panic.as_ref()));
            health.check()
        }
    }
}

/// Lets callbacks of the device run, the one that reports its loss among them.
pub(crate) fn poll(device: &wgpu::Device, health: &Health) -> Result<()> {
    let outcome = catch_unwind(AssertUnwindSafe(|| device.poll(wgpu::PollType::Poll)));
    if let Err(panic) = outcome {
        health.set_lost(panic_message(panic.as_ref()));
    }
    health.check()
}

/// What a caught panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
        .unwrap_or_else(|| "panic without a message".into())
}

/// Locks; a panic elsewhere while the lock was held does not make the data unusable here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
