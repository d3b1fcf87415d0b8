//! Interventions: attention heads switched off, scaled or replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use attn_wgpu::{DType, Gpu, Tensor, ops};

use crate::policy::Layer;
use crate::{ModelConfig, Result};

/// What is done to a head.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HeadEdit {
    /// Its queries are 0: it attends alike to all keys that it may see.
    Uniform,
    /// Its output is 0.
    Zero,
    /// Its output is multiplied.
    Scale(f32),
    /// Its output is these numbers, `[head_dim]`, for every token: with means over many texts, mean
    /// ablation.
    Replace(Vec<f32>),
}

/// Edits of heads by layer and query head, both counted from 0. At most one a head: a later one takes
/// the place of an earlier one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeadEdits(BTreeMap<(usize, usize), HeadEdit>);

impl HeadEdits {
    /// No edits.
    pub fn new() -> Self {
        HeadEdits::default()
    }

    /// The same with one more edit.
    pub fn with(mut self, layer: usize, head: usize, edit: HeadEdit) -> Self {
        self.0.insert((layer, head), edit);
        self
    }

    /// One edit for each of these `(layer, head)`.
    pub fn of(heads: impl IntoIterator<Item = (usize, usize)>, edit: &HeadEdit) -> Self {
        HeadEdits(heads.into_iter().map(|head| (head, edit.clone())).collect())
    }

    /// The edits, by layer and head.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, &HeadEdit)> {
        self.0.iter().map(|(&(layer, head), edit)| (layer, head, edit))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        for (layer, head, edit) in self.iter() {
            for (arg, got, most) in
                [("layer", layer, config.layers.len()), ("head", head, config.heads)]
            {
                if got >= most {
                    return Err(attn_core::Error::config(arg, format!("below {most}"), got).into());
                }
            }
            let numbers = match edit {
                HeadEdit::Replace(numbers) => numbers.as_slice(),
                HeadEdit::Scale(factor) => std::slice::from_ref(factor),
                HeadEdit::Uniform | HeadEdit::Zero => &[],
            };
            if let HeadEdit::Replace(numbers) = edit
                && numbers.len() != config.head_dim
            {
                let expected = format!("[{}]", config.head_dim);
                return Err(attn_core::Error::shape("edit", expected, &[numbers.len()]).into());
            }
            if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
                return Err(attn_core::Error::data("edit", "finite numbers", number).into());
            }
        }
        Ok(())
    }
}

/// Edits with their numbers on the device.
#[derive(Debug, Clone)]
pub(crate) struct DeviceEdits {
    edits: Arc<HeadEdits>,
    /// `[1, 1, 1, head_dim]`, of zeros and for each replaced head.
    zeros: Tensor,
    replacements: BTreeMap<(usize, usize), Tensor>,
}

impl DeviceEdits {
    pub(crate) fn new(gpu: &Gpu, config: &ModelConfig, edits: &HeadEdits) -> Result<DeviceEdits> {
        edits.check(config)?;
        let shape = [1, 1, 1, config.head_dim];
        let mut replacements = BTreeMap::new();
        for (&head, edit) in &edits.0 {
            if let HeadEdit::Replace(numbers) = edit {
                replacements.insert(head, Tensor::from_slice(gpu, numbers, &shape)?);
            }
        }
        let zeros = Tensor::zeros(gpu, &shape, DType::F32)?;
        Ok(DeviceEdits { edits: Arc::new(edits.clone()), zeros, replacements })
    }

    pub(crate) fn edits(&self) -> &HeadEdits {
        &self.edits
    }

    fn of(&self, layer: usize) -> impl Iterator<Item = (usize, &HeadEdit)> {
        let heads = self.edits.0.range((layer, 0)..=(layer, usize::MAX));
        heads.map(|(&(_, head), edit)| (head, edit))
    }

    /// The layer's queries, 0 for heads that are to look at all keys alike.
    pub(crate) fn queries(&self, layer: usize, q: Tensor) -> Result<Tensor> {
        let is_uniform =
            |(head, edit): (usize, &HeadEdit)| (*edit == HeadEdit::Uniform).then_some(head);
        let heads: Vec<usize> = self.of(layer).filter_map(is_uniform).collect();
        if heads.is_empty() {
            return Ok(q);
        }
        let own = Tensor::uninit(q.gpu(), q.shape(), q.dtype())?;
        ops::convert_into(&q, &own)?;
        heads.into_iter().try_for_each(|head| set(&own, head, &self.zeros))?;
        Ok(own)
    }

    /// The layer's outputs after their edits. What the policy returned is not written: it may be its own.
    pub(crate) fn outputs(&self, layer: &Layer<'_>, out: Tensor) -> Result<Tensor> {
        let mut edits =
            self.of(layer.index()).filter(|(_, edit)| **edit != HeadEdit::Uniform).peekable();
        if edits.peek().is_none() {
            return Ok(out);
        }
        let own = layer.output()?;
        ops::convert_into(&out, &own)?;
        for (head, edit) in edits {
            match edit {
                HeadEdit::Uniform => {}
                HeadEdit::Zero => set(&own, head, &self.zeros)?,
                HeadEdit::Scale(factor) => {
                    ops::scale_into(&out.narrow(1, head, 1)?, *factor, &own.narrow(1, head, 1)?)?;
                }
                HeadEdit::Replace(_) => {
                    if let Some(numbers) = self.replacements.get(&(layer.index(), head)) {
                        set(&own, head, numbers)?;
                    }
                }
            }
        }
        Ok(own)
    }
}

/// Gives every token of a head the same numbers.
fn set(tensor: &Tensor, head: usize, numbers: &Tensor) -> Result<()> {
    let target = tensor.narrow(1, head, 1)?;
    Ok(ops::convert_into(&numbers.expand(target.shape())?, &target)?)
}
