//! Attention over sparse plans: [`DevicePlan`] is a plan on a device, [`PlanAttention`] executes it.
//!
//! A plan says which keys each query attends to ([`attn_core::plan`] defines it). Where it comes from
//! does not matter here: uploaded from the host, or written by kernels that select.

mod backward;
mod bounds;
#[cfg(feature = "bench")]
pub(crate) mod catalogue;
mod device;
mod executor;
mod gradients;
mod group_stats;
mod listing;
mod merge;
mod params;
mod round;
mod transfer;

pub use self::backward::{Grads, Saved, Targets};
pub use self::device::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, Region};
pub use self::executor::PlanAttention;
