//! Segments as kernels look them up.

use std::sync::{Arc, Mutex, PoisonError};

use attn_core::AttentionShape;
use attn_wgpu::attention::Inputs;
use attn_wgpu::plan::DevicePlan;
use attn_wgpu::{Gpu, Result, Tensor};

use crate::Segments;

/// Tokens of an item, a piece of a document.
const ITEM: usize = 32;
/// Items of a part, the sums of which are added one after the other.
const PART: usize = 16;

/// Segments with their tables on a device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceSegments {
    gpu: Gpu,
    host: Arc<Segments>,
    pub(super) tables: Arc<Tables>,
    /// The last plan, and the query and key heads that it is for.
    plan: Arc<Mutex<Option<([usize; 2], DevicePlan)>>>,
}

#[derive(Debug)]
pub(super) struct Tables {
    /// First token, tokens, prompt and document `[items, 4]`.
    pub(super) items: Tensor,
    /// Items from and to, parts from and to `[batch, 4]`.
    pub(super) prompts: Tensor,
    /// Items from and to `[batch, documents, 2]`.
    pub(super) spans: Tensor,
    /// Items from and to `[parts, 2]`.
    pub(super) parts: Tensor,
    /// Document of a token, or `u32::MAX` `[batch, tokens filled up to whole groups of four]`.
    pub(super) owners: Tensor,
    /// Most items of a prompt.
    pub(super) longest: usize,
}

impl Tables {
    pub(super) fn items(&self) -> usize {
        self.items.len() / 4
    }

    pub(super) fn parts(&self) -> usize {
        self.parts.len() / 2
    }

    /// Steps through a part.
    pub(super) fn part_steps(&self) -> usize {
        PART.max(ITEM)
    }

    fn new(gpu: &Gpu, segments: &Segments) -> Result<Tables> {
        let (batch, documents) = (segments.batch(), segments.most_documents());
        let width = segments.tokens().next_multiple_of(4);
        let (mut items, mut prompts, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = vec![0u32; batch * documents * 2];
        let mut owners = vec![u32::MAX; batch * width];
        let mut longest = 0;
        for prompt in 0..batch {
            let (first, first_part) = (items.len() / 4, parts.len() / 2);
            for (number, document) in segments.documents(prompt).iter().enumerate() {
                let from = items.len() / 4;
                for start in document.range().step_by(ITEM) {
                    let len = ITEM.min(document.range().end - start);
                    items.extend([start as u32, len as u32, prompt as u32, number as u32]);
                }
                let at = 2 * (prompt * documents + number);
                spans[at..at + 2].copy_from_slice(&[from as u32, (items.len() / 4) as u32]);
                let own = document.range();
                owners[prompt * width + own.start..prompt * width + own.end].fill(number as u32);
            }
            let end = items.len() / 4;
            for from in (first..end).step_by(PART) {
                parts.extend([from as u32, (from + PART).min(end) as u32]);
            }
            prompts.extend([first, end, first_part, parts.len() / 2].map(|at| at as u32));
            longest = longest.max(end - first);
        }
        let table = |words: &[u32], shape: &[usize]| Tensor::from_slice(gpu, words, shape);
        Ok(Tables {
            prompts: table(&prompts, &[batch, 4])?,
            spans: table(&spans, &[batch, documents, 2])?,
            parts: table(&parts, &[parts.len() / 2, 2])?,
            owners: table(&owners, &[batch, width])?,
            items: table(&items, &[items.len() / 4, 4])?,
            longest,
        })
    }
}

impl DeviceSegments {
    /// Copies what follows from the segments to the device.
    ///
    /// # Errors
    /// Those of allocation.
    pub fn new(gpu: &Gpu, segments: &Segments) -> Result<DeviceSegments> {
        let tables = Arc::new(Tables::new(gpu, segments)?);
        let host = Arc::new(segments.clone());
        Ok(DeviceSegments { gpu: gpu.clone(), host, tables, plan: Arc::default() })
    }

    /// The segments.
    pub fn host(&self) -> &Segments {
        &self.host
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The mask as a plan for these numbers of heads. The last one is kept.
    ///
    /// # Errors
    /// As [`Segments::plan`]; those of allocation.
    pub fn plan(&self, heads: usize, heads_kv: usize) -> Result<DevicePlan> {
        let mut kept = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, plan)) = kept.as_ref()
            && *of == [heads, heads_kv]
        {
            return Ok(plan.clone());
        }
        let plan = DevicePlan::upload(&self.gpu, &self.host.plan(heads, heads_kv)?)?;
        *kept = Some(([heads, heads_kv], plan.clone()));
        Ok(plan)
    }

    pub(super) fn plan_for(&self, inputs: &Inputs<'_>) -> Result<DevicePlan> {
        let Inputs { q, k, v, .. } = inputs;
        let shape = AttentionShape::from_shapes(q.shape(), k.shape(), v.shape())?;
        self.plan(shape.heads, shape.heads_kv)
    }
}
