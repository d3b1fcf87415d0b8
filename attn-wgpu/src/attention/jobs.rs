//! Splitting one call into dispatches that fit the device's limits.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// The tensors of one call, in a form that kernels can address.
pub(super) struct Views {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) out: Tensor,
    pub(super) lse: Option<Tensor>,
    /// Queries of one row tile.
    pub(super) tile: usize,
    /// Query heads per key head.
    pub(super) group: usize,
}

/// The part of a call that one dispatch does. Every row is computed as a whole by one dispatch, so
/// a result never depends on how a call is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) batch: Range<usize>,
    /// Query heads: whole groups, or some of one group.
    pub(super) heads: Range<usize>,
    pub(super) tiles: Range<usize>,
}

/// The windows of the tensors that a job touches.
pub(super) struct Windows {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) out: Tensor,
    pub(super) lse: Option<Tensor>,
}

impl Job {
    /// Jobs whose windows fit a binding and whose work is below the cap.
    pub(super) fn split(views: &Views, work_per_row: f64, gpu: &Gpu) -> Result<Vec<Job>> {
        let shape = views.q.shape();
        let all =
            Job { batch: 0..shape[0], heads: 0..shape[1], tiles: 0..shape[2].div_ceil(views.tile) };
        let mut done = Vec::new();
        let mut open = vec![all];
        while let Some(job) = open.pop() {
            let excess = job.excess(views, gpu)?;
            let rows = job.batch.len() * job.heads.len() * job.queries(views).len();
            let heavy = work_per_row * rows as f64 > gpu.max_work_per_dispatch();
            match (job.halves(views.group), excess) {
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
    fn excess(&self, views: &Views, gpu: &Gpu) -> Result<Option<Error>> {
        let capabilities = gpu.capabilities();
        let windows = self.windows(views)?;
        let named = [
            ("q", Some(&windows.q)),
            ("k", Some(&windows.k)),
            ("v", Some(&windows.v)),
            ("out", Some(&windows.out)),
            ("lse", windows.lse.as_ref()),
        ];
        let available = capabilities.max_binding_bytes.min(1 << 32);
        for (name, window) in named {
            let needed = window.map_or(0, |window| window.binding().0.bytes);
            if needed > available {
                let what = format!("a part of `{name}` that one workgroup reads or writes");
                let limit = "maxStorageBufferBindingSize";
                return Ok(Some(Error::Limit { what, limit, needed, available }));
            }
        }
        let groups = (self.batch.len() * self.heads.len()) as u64 * self.tiles.len() as u64;
        let most = u64::from(capabilities.max_workgroups).pow(2).min(u64::from(u32::MAX));
        if groups > most {
            let (what, limit) = ("attention".into(), "maxComputeWorkgroupsPerDimension");
            return Ok(Some(Error::Limit { what, limit, needed: groups, available: most }));
        }
        Ok(None)
    }

    /// Two halves, along the first of batch, groups, heads of a group, and tiles that has any.
    fn halves(&self, group: usize) -> Option<[Job; 2]> {
        let cut = |range: &Range<usize>, unit: usize| {
            let middle = range.start + range.len() / unit / 2 * unit;
            [range.start..middle, middle..range.end]
        };
        let of = |range: &Range<usize>, unit, make: &dyn Fn(Range<usize>) -> Job| {
            Some(cut(range, unit).map(make))
        };
        if self.batch.len() > 1 {
            of(&self.batch, 1, &|batch| Job { batch, ..self.clone() })
        } else if self.heads.len() > group {
            of(&self.heads, group, &|heads| Job { heads, ..self.clone() })
        } else if self.heads.len() > 1 {
            of(&self.heads, 1, &|heads| Job { heads, ..self.clone() })
        } else if self.tiles.len() > 1 {
            of(&self.tiles, 1, &|tiles| Job { tiles, ..self.clone() })
        } else {
            None
        }
    }

    /// Queries of the job's tiles.
    pub(super) fn queries(&self, views: &Views) -> Range<usize> {
        let end = (self.tiles.end * views.tile).min(views.q.shape()[2]);
        self.tiles.start * views.tile..end
    }

    pub(super) fn windows(&self, views: &Views) -> Result<Windows> {
        let queries = self.queries(views);
        let heads_kv = self.heads.start / views.group..self.heads.end.div_ceil(views.group);
        let window = |tensor: &Tensor, heads: &Range<usize>, tokens: Option<&Range<usize>>| {
            let part = tensor.narrow(0, self.batch.start, self.batch.len())?;
            let part = part.narrow(1, heads.start, heads.len())?;
            tokens.map_or(Ok(part.clone()), |tokens| part.narrow(2, tokens.start, tokens.len()))
        };
        Ok(Windows {
            q: window(&views.q, &self.heads, Some(&queries))?,
            k: window(&views.k, &heads_kv, None)?,
            v: window(&views.v, &heads_kv, None)?,
            out: window(&views.out, &self.heads, Some(&queries))?,
            lse: match &views.lse {
                Some(lse) => Some(window(lse, &self.heads, Some(&queries))?),
                None => None,
            },
        })
    }
}
