//! Bind groups, kept for the next dispatch that binds the same.
//!
//! A program that repeats itself, as the decoding of a language model does, gets the same buffers
//! from the pool in the same order, and so creates no bind group after its first rounds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::guard::lock;
use crate::pool::Storage;

/// All are forgotten beyond this number: what binds so many different things does not repeat.
const MAX_GROUPS: usize = 8192;

/// A range of a buffer that is bound, in bytes.
pub(crate) struct Range {
    pub(crate) storage: Arc<Storage>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Layout, then buffer, offset and size of each binding.
type Key = (wgpu::BindGroupLayout, Vec<(wgpu::Buffer, u64, u64)>);

#[derive(Default)]
pub(crate) struct BindGroups {
    groups: Mutex<HashMap<Key, wgpu::BindGroup>>,
}

impl BindGroups {
    /// The bind group of these ranges, made by `create` if it is new. The flag tells whether it was.
    ///
    /// A bind group keeps its buffers alive, so those of a caller are not kept.
    pub(crate) fn get<E>(
        &self,
        layout: &wgpu::BindGroupLayout,
        ranges: &[Range],
        create: impl FnOnce() -> Result<wgpu::BindGroup, E>,
    ) -> Result<(wgpu::BindGroup, bool), E> {
        if ranges.iter().any(|range| !range.storage.is_pooled()) {
            return Ok((create()?, true));
        }
        let bound = |range: &Range| (range.storage.buffer.clone(), range.offset, range.bytes);
        let key = (layout.clone(), ranges.iter().map(bound).collect());
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.get(&key) {
            return Ok((group.clone(), false));
        }
        let group = create()?;
        if groups.len() >= MAX_GROUPS {
            groups.clear();
        }
        groups.insert(key, group.clone());
        Ok((group, true))
    }

    /// Forgets the groups that hold `buffer`, which the pool gives up.
    pub(crate) fn forget(&self, buffer: &wgpu::Buffer) {
        lock(&self.groups).retain(|(_, bound), _| bound.iter().all(|(held, ..)| held != buffer));
    }
}
