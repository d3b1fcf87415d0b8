//! Device buffers: allocation within a budget, reuse, and statistics.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::bind_groups::BindGroups;
use crate::error::{Error, Result};
use crate::guard::{Health, guarded, lock};

/// Memory of a [`Gpu`](crate::Gpu) in bytes, buffers wrapped from a caller not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Held by live tensors.
    pub in_use: u64,
    /// Most that was ever held by live tensors, since the start or [`Gpu::reset_peak`](crate::Gpu::reset_peak).
    pub peak: u64,
    /// Free, kept for reuse.
    pub cached: u64,
    /// Most that `in_use` and `cached` may reach together.
    pub budget: u64,
    /// Buffers created so far.
    pub allocations: u64,
}

/// Free buffers are dropped, oldest first, once they exceed this or the peak in use.
const CACHE_FLOOR: u64 = 16 << 20;

pub(crate) struct Pool {
    device: wgpu::Device,
    health: Health,
    max_buffer: u64,
    state: Mutex<State>,
    groups: Arc<BindGroups>,
}

struct State {
    stats: MemoryStats,
    /// Oldest first.
    free: VecDeque<Free>,
}

struct Free {
    buffer: wgpu::Buffer,
    used_in: u64,
}

/// A device buffer that goes back to its pool when the last tensor on it is dropped.
pub(crate) struct Storage {
    pub(crate) buffer: wgpu::Buffer,
    /// Number of the newest batch of commands that touches the buffer.
    pub(crate) used_in: AtomicU64,
    home: Option<Arc<Pool>>,
}

impl Storage {
    /// A caller's buffer; it is never pooled.
    pub(crate) fn external(buffer: wgpu::Buffer) -> Self {
        Storage { buffer, used_in: AtomicU64::new(0), home: None }
    }

    /// Whether the buffer is the pool's.
    pub(crate) fn is_pooled(&self) -> bool {
        self.home.is_some()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(pool) = &self.home {
            pool.give_back(self.buffer.clone(), self.used_in.load(Ordering::Relaxed));
        }
    }
}

impl Pool {
    pub(crate) fn new(
        device: wgpu::Device,
        health: Health,
        max_buffer: u64,
        budget: u64,
        groups: Arc<BindGroups>,
    ) -> Self {
        let stats = MemoryStats { budget, ..MemoryStats::default() };
        let state = Mutex::new(State { stats, free: VecDeque::new() });
        Pool { device, health, max_buffer, state, groups }
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        lock(&self.state).stats
    }

    pub(crate) fn reset_peak(&self) {
        let stats = &mut lock(&self.state).stats;
        stats.peak = stats.in_use;
    }

    /// A buffer of at least `bytes` bytes with unspecified contents.
    ///
    /// `idle_before`: a recycled buffer must not be touched by this batch of commands or a later
    /// one. Writes from the host need that, because they overtake commands not yet submitted.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        bytes: u64,
        idle_before: Option<u64>,
    ) -> Result<Storage> {
        let size = size_class(bytes);
        self.take(bytes, size..=size.saturating_mul(2), idle_before)
    }

    /// A buffer of [`resident_size`] bytes with unspecified contents: what stays is to take no more than it
    /// needs.
    pub(crate) fn acquire_resident(self: &Arc<Self>, bytes: u64) -> Result<Storage> {
        let size = resident_size(bytes);
        self.take(bytes, size..=size, None)
    }

    /// A free buffer of one of these `sizes`, or a new one of the smallest of them.
    fn take(
        self: &Arc<Self>,
        bytes: u64,
        sizes: RangeInclusive<u64>,
        idle_before: Option<u64>,
    ) -> Result<Storage> {
        let size = *sizes.start();
        if size > self.max_buffer {
            return Err(Error::Limit {
                what: "a tensor".into(),
                limit: "maxBufferSize",
                needed: bytes,
                available: self.max_buffer,
            });
        }
        let mut state = lock(&self.state);
        let fits = |free: &Free| {
            let idle = idle_before.is_none_or(|batch| free.used_in < batch);
            idle && sizes.contains(&free.buffer.size())
        };
        let best = (0..state.free.len())
            .filter(|&i| fits(&state.free[i]))
            .min_by_key(|&i| state.free[i].buffer.size());
        if let Some(Free { buffer, used_in }) = best.and_then(|i| state.free.remove(i)) {
            state.stats.cached -= buffer.size();
            return Ok(self.lend(&mut state, buffer, used_in));
        }
        while state.stats.in_use.saturating_add(state.stats.cached + size) > state.stats.budget {
            let Some(oldest) = state.free.pop_front() else {
                let MemoryStats { in_use, budget, .. } = state.stats;
                return Err(Error::OutOfMemory { requested: bytes, in_use, budget });
            };
            self.drop_free(&mut state, &oldest);
        }
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = guarded(&self.device, &self.health, "allocate", || {
            self.device.create_buffer(&descriptor)
        })
        .map_err(|error| match error {
            Error::OutOfMemory { .. } => {
                let in_use = state.stats.in_use;
                Error::OutOfMemory { requested: bytes, in_use, budget: u64::MAX }
            }
            other => other,
        })?;
        state.stats.allocations += 1;
        Ok(self.lend(&mut state, buffer, 0))
    }

    fn lend(self: &Arc<Self>, state: &mut State, buffer: wgpu::Buffer, used_in: u64) -> Storage {
        state.stats.in_use += buffer.size();
        state.stats.peak = state.stats.peak.max(state.stats.in_use);
        Storage { buffer, used_in: AtomicU64::new(used_in), home: Some(Arc::clone(self)) }
    }

    fn give_back(&self, buffer: wgpu::Buffer, used_in: u64) {
        let mut state = lock(&self.state);
        let size = buffer.size();
        state.stats.in_use -= size;
        state.stats.cached += size;
        state.free.push_back(Free { buffer, used_in });
        let keep = state.stats.peak.max(CACHE_FLOOR);
        while state.stats.cached > keep {
            let Some(oldest) = state.free.pop_front() else { break };
            self.drop_free(&mut state, &oldest);
        }
    }

    /// Counts a free buffer out, and lets go of what else holds it.
    fn drop_free(&self, state: &mut State, free: &Free) {
        state.stats.cached -= free.buffer.size();
        self.groups.forget(&free.buffer);
    }
}

/// Eight sizes per power of two, so that changing lengths find each other's buffers again and at
/// most an eighth is wasted.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (1u64 << bytes.ilog2()) / 8;
    bytes.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// Whole chunks of four words, as kernels bind them.
pub(crate) const fn resident_size(bytes: u64) -> u64 {
    let chunks = bytes.div_ceil(16);
    if chunks == 0 { 16 } else { chunks.saturating_mul(16) }
}

#[cfg(test)]
mod tests {
    use super::{resident_size, size_class};

    #[test]
    fn what_stays_wastes_less_than_a_chunk() {
        for (bytes, size) in [(0, 16), (1, 16), (16, 16), (17, 32), (2304, 2304)] {
            assert_eq!(resident_size(bytes), size, "{bytes}");
        }
        assert!(resident_size(u64::MAX) > 1 << 63);
    }

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for bytes in (0..100_000).chain([1 << 27, (1 << 27) + 1, (1 << 40) - 1]) {
            let class = size_class(bytes);
            assert!(class >= bytes.max(256) && class.is_multiple_of(16), "{bytes} -> {class}");
            assert!(bytes < 256 || class <= bytes + bytes / 8, "{bytes} -> {class}");
        }
    }
}
