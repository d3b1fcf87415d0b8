//! What was selected, and why.

use attn_core::AttentionShape;
use attn_core::plan::SparsePlan;
use attn_wgpu::plan::{DevicePlan, Region};
use attn_wgpu::{Result, Tensor};

use crate::chunk::Chunk;
use crate::reference::plan_of;

/// What was selected for a prompt, or for a part of one behind keys of earlier parts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Selection {
    /// Blocks of keys of every block of queries, per head; of the queries behind those of `lead`.
    pub plan: DevicePlan,
    /// The same of the first queries, where the first one is inside of a block.
    pub lead: Option<DevicePlan>,
    /// What was decided about each head; `None` where all blocks are on ([`crate::Config::is_dense`]).
    pub heads: Option<Heads>,
    pub(crate) shape: AttentionShape,
    pub(crate) chunk: Chunk,
}

/// Decisions on the device: [`Heads::read`] gets them.
#[derive(Debug, Clone)]
pub struct Heads {
    /// u32 `[5, planes]`.
    pub(crate) decided: Tensor,
}

/// What was decided about one head.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Head {
    /// Square root of the Jensen-Shannon divergence of pooled from probed attention.
    pub divergence: f32,
    /// Whether the head is query-aware; else it has vertical and slash lines only.
    pub query_aware: bool,
    /// Vertical and slash lines, in blocks.
    pub lines: [usize; 2],
    /// Pairs of blocks that a query-aware head has besides.
    pub pairs: usize,
}

impl Heads {
    /// The decisions, `[batch * heads]`. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<Vec<Head>> {
        let words = self.decided.to_vec::<u32>()?;
        let planes = self.decided.shape()[1];
        let head = |plane: usize| Head {
            divergence: f32::from_bits(words[4 * planes + plane]),
            query_aware: words[3 * planes + plane] != 0,
            lines: [words[plane] as usize, words[planes + plane] as usize],
            pairs: words[2 * planes + plane] as usize,
        };
        Ok((0..planes).map(head).collect())
    }
}

impl Selection {
    /// The blocks as one plan on the host, that of [`crate::reference::select`]. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn download(&self) -> Result<SparsePlan> {
        Ok(plan_of(&self.shape, &self.chunk, self.words()?))
    }

    /// Share of the pairs of a query and a key up to its own that are selected, `[batch * heads]`. Waits
    /// for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn densities(&self) -> Result<Vec<f64>> {
        let (words, rows) = (self.words()?, self.chunk.rows());
        let width = self.chunk.blocks().div_ceil(32);
        let density = |plane: usize| {
            let mut sums = [0, 0];
            for row in 0..rows {
                let words = &words[(plane * rows + row) * width..][..width];
                let on = words.iter().map(|word| word.count_ones() as usize).sum();
                let [some, all] = self.chunk.pairs(row, on);
                sums = [sums[0] + some, sums[1] + all];
            }
            sums[0] as f64 / (sums[1] as f64).max(1.0)
        };
        Ok((0..self.shape.batch * self.shape.heads).map(density).collect())
    }

    /// Bits of blocks, `[planes, rows, words]`.
    fn words(&self) -> Result<Vec<u32>> {
        let read = |plan: &DevicePlan| plan.parts()[0].region(Region::Data)?.to_vec::<u32>();
        let main = read(&self.plan)?;
        let Some(lead) = &self.lead else { return Ok(main) };
        let lead = read(lead)?;
        let width = self.chunk.blocks().div_ceil(32);
        let behind = main.chunks((self.chunk.rows() - 1) * width);
        let rows = lead.chunks(width).zip(behind);
        Ok(rows.flat_map(|(first, behind)| [first, behind].concat()).collect())
    }
}
