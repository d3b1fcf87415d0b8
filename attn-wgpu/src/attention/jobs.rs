//! Splitting one call into dispatches that fit the device's limits.

use std::ops::Range;

use attn_core::AttentionShape;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// What a kernel's dispatches are split along.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) batch: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Query heads per key head.
    pub(crate) group: usize,
    /// Tiles of a head: of queries or of keys.
    pub(crate) tiles: usize,
    /// Whether the query heads of one key head may go to different dispatches.
    pub(crate) split_groups: bool,
}

impl Grid {
    /// `tiles` tiles of every head, each of which may be a dispatch of its own.
    pub(crate) fn new(shape: &AttentionShape, tiles: usize) -> Self {
        let AttentionShape { batch, heads, .. } = *shape;
        Grid { batch, heads, group: shape.group(), tiles, split_groups: true }
    }
}

/// The part of a call that one dispatch does. A tile is computed as a whole by one dispatch, so a
/// result never depends on how a call is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) batch: Range<usize>,
    /// Query heads: whole groups, or some of one group.
    pub(crate) heads: Range<usize>,
    pub(crate) tiles: Range<usize>,
}

impl Job {
    /// Jobs whose windows fit a binding and whose work is below the cap.
    ///
    /// `windows` names the bytes that a job binds of each tensor, `work` estimates its operations.
    pub(crate) fn split(
        grid: &Grid,
        gpu: &Gpu,
        work: impl Fn(&Job) -> f64,
        windows: impl Fn(&Job) -> Result<Vec<(&'static str, u64)>>,
    ) -> Result<Vec<Job>> {
        let mut done = Vec::new();
        let mut open =
            vec![Job { batch: 0..grid.batch, heads: 0..grid.heads, tiles: 0..grid.tiles }];
        while let Some(job) = open.pop() {
            let excess = job.excess(gpu, &windows(&job)?);
            let heavy = work(&job) > gpu.max_work_per_dispatch();
            match (job.halves(grid), excess) {
                (Some([first, second]), excess) if heavy || excess.is_some() => {
                    open.push(second);
                    open.push(first);
                }
                (_, Some(limit)) => return Err(limit),
                _ => done.push(job),
            }
        }
        Ok(done)
    }

    /// The limit that this job exceeds, as an error.
    fn excess(&self, gpu: &Gpu, windows: &[(&'static str, u64)]) -> Option<Error> {
        let capabilities = gpu.capabilities();
        let available = capabilities.max_binding_bytes.min(1 << 32);
        for &(name, needed) in windows {
            if needed > available {
                let what = format!("a part of `{name}` that one workgroup reads or writes");
                let limit = "maxStorageBufferBindingSize";
                return Some(Error::Limit { what, limit, needed, available });
            }
        }
        let heads = self.heads.len() as u64;
        let groups = self.batch.len() as u64 * heads * self.tiles.len() as u64;
        let most = u64::from(capabilities.max_workgroups).pow(2).min(u64::from(u32::MAX));
        let too_many = [(groups, most), (heads, 65_535)].into_iter().find(|(n, most)| n > most);
        too_many.map(|(needed, available)| {
            let (what, limit) = ("attention".into(), "maxComputeWorkgroupsPerDimension");
            Error::Limit { what, limit, needed, available }
        })
    }

    /// Two halves, along the first of batch, groups, heads of a group, and tiles that has any.
    fn halves(&self, grid: &Grid) -> Option<[Job; 2]> {
        let cut = |range: &Range<usize>, unit: usize| {
            let middle = range.start + range.len() / unit / 2 * unit;
            [range.start..middle, middle..range.end]
        };
        let of = |range: &Range<usize>, unit, make: &dyn Fn(Range<usize>) -> Job| {
            Some(cut(range, unit).map(make))
        };
        if self.batch.len() > 1 {
            of(&self.batch, 1, &|batch| Job { batch, ..self.clone() })
        } else if self.heads.len() > grid.group {
            of(&self.heads, grid.group, &|heads| Job { heads, ..self.clone() })
        } else if self.heads.len() > 1 && grid.split_groups {
            of(&self.heads, 1, &|heads| Job { heads, ..self.clone() })
        } else if self.tiles.len() > 1 {
            of(&self.tiles, 1, &|tiles| Job { tiles, ..self.clone() })
        } else {
            None
        }
    }

    /// Planes (batch entries times query heads) of the job.
    pub(crate) fn planes(&self) -> usize {
        self.batch.len() * self.heads.len()
    }

    /// Key heads of the job.
    pub(crate) fn heads_kv(&self, group: usize) -> Range<usize> {
        self.heads.start / group..self.heads.end.div_ceil(group)
    }

    /// Query heads per key head inside the job.
    pub(crate) fn group(&self, group: usize) -> usize {
        group.min(self.heads.len())
    }

    /// Tokens of the job's tiles of `tile` tokens, out of `length`.
    pub(crate) fn tokens(&self, tile: usize, length: usize) -> Range<usize> {
        self.tiles.start * tile..(self.tiles.end * tile).min(length)
    }

    /// The part of a `[batch, heads, tokens, ..]` tensor that belongs to the job's batch entries,
    /// to `heads` and to `tokens`.
    pub(crate) fn window(
        &self,
        tensor: &Tensor,
        heads: &Range<usize>,
        tokens: &Range<usize>,
    ) -> Result<Tensor> {
        tensor
            .narrow(0, self.batch.start, self.batch.len())?
            .narrow(1, heads.start, heads.len())?
            .narrow(2, tokens.start, tokens.len())
    }
}

/// Bytes that binding a tensor takes.
pub(crate) fn bytes(tensor: &Tensor) -> u64 {
    tensor.binding().0.bytes
}
