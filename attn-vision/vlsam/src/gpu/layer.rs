//! One layer's attention, applied to rows.

use attn_core::dense;
use attn_wgpu::attention::{Attention, Inputs, Want};
use attn_wgpu::scan::{Columns, column_sums};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use super::kernels::{HEAD_WEIGHTS, ROW_MAX, Share, run, start};
use crate::{LayerAttention, QueriesKeys};

/// Elements of keys that stand for values where only statistics are wanted: the kernel reads whole groups.
const FEW: usize = 4;

/// A layer with what all rows share.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Prepared {
    QueriesKeys { q: Tensor, k: Tensor, attention: Attention, lse: Tensor, row_max: Tensor },
    Maps(Tensor),
}

/// `y_h = u S_h` of every head.
pub(super) struct Spread {
    pub(super) values: Tensor,
    pub(super) heads: usize,
    /// In elements: start, and strides of heads, tokens and rows.
    pub(super) place: [u32; 4],
}

impl Prepared {
    /// Checks a layer of a sequence of `tokens` tokens, and computes statistics of its rows. `last` is the
    /// attention of the layer before, which may serve again.
    pub(super) fn new(
        gpu: &Gpu,
        layer: LayerAttention,
        tokens: usize,
        last: &mut Option<Attention>,
    ) -> Result<Prepared> {
        let own = |arg, tensor: &Tensor| match tensor.gpu().is_same(gpu) {
            true => Ok(()),
            false => {
                let (expected, got) = (gpu.adapter().name.as_str(), "a tensor of another Gpu");
                Err(attn_core::Error::config(arg, expected, got))
            }
        };
        match layer {
            LayerAttention::Maps(maps) => {
                own("maps", &maps)?;
                let &[heads, rows, columns] = maps.shape() else {
                    let expected = format!("[heads, {tokens}, {tokens}]");
                    return Err(attn_core::Error::shape("maps", expected, maps.shape()).into());
                };
                if rows != tokens || columns != tokens || heads == 0 {
                    let expected = format!("[heads, {tokens}, {tokens}], at least one head");
                    return Err(attn_core::Error::shape("maps", expected, maps.shape()).into());
                }
                if maps.dtype() != DType::F32 {
                    let (expected, got) = (DType::F32.name().into(), maps.dtype().name().into());
                    return Err(attn_core::Error::Dtype { arg: "maps", expected, got }.into());
                }
                Ok(Prepared::Maps(maps.contiguous()?))
            }
            LayerAttention::QueriesKeys(QueriesKeys { q, k, attention, sinks }) => {
                own("q", &q)?;
                let is_one = |x: &Tensor| {
                    x.shape().len() == 4 && x.shape()[0] == 1 && x.shape()[2] == tokens
                };
                for (arg, tensor) in [("q", &q), ("k", &k)] {
                    if !is_one(tensor) || tensor.shape()[1] == 0 {
                        let expected = format!("[1, heads, {tokens}, D], at least one head");
                        return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
                    }
                }
                let attention = reuse(gpu, last, attention)?;
                let few = k.narrow(3, 0, FEW.min(k.shape()[3]))?;
                let mut inputs = Inputs::new(&q, &k, &few);
                if let Some(sinks) = &sinks {
                    inputs = inputs.with_sinks(sinks);
                }
                let output = attention.forward_with(inputs, Want::nothing().with_row_max())?;
                let missing = || attn_core::Error::config("row_max", "wanted and computed", "none");
                let (lse, row_max) = (output.lse, output.row_max.ok_or_else(missing)?);
                Ok(Prepared::QueriesKeys { q, k, attention, lse, row_max })
            }
        }
    }

    pub(super) fn heads(&self) -> usize {
        match self {
            Prepared::QueriesKeys { q, .. } => q.shape()[1],
            Prepared::Maps(maps) => maps.shape()[0],
        }
    }

    /// `W` into `target`, `[1, heads]`.
    pub(super) fn head_weights(&self, target: &Tensor) -> Result<()> {
        let gpu = target.gpu();
        let heads = self.heads();
        let weigh = |row_max: &Tensor, lse: Option<&Tensor>, rows: usize| {
            let params =
                [heads as u32, rows as u32, start(row_max), lse.map_or(0, start), start(target)];
            let mut tensors = vec![row_max, target];
            tensors.extend(lse);
            let flag = lse.map(|_| "LOGITS");
            run(gpu, &HEAD_WEIGHTS, flag, &tensors, &params, Share::Groups(heads, rows))
        };
        match self {
            Prepared::QueriesKeys { lse, row_max, q, .. } => {
                weigh(row_max, Some(lse), q.shape()[2])
            }
            Prepared::Maps(maps) => {
                let rows = maps.shape()[1];
                let row_max = Tensor::uninit(gpu, &[heads, rows], DType::F32)?;
                // As many heads as a binding holds.
                let head = 4 * (rows as u64).saturating_mul(rows as u64).max(1);
                let most =
                    (gpu.capabilities().max_binding_bytes / head).clamp(1, heads as u64) as usize;
                for first in (0..heads).step_by(most) {
                    let count = most.min(heads - first);
                    let part = maps.narrow(0, first, count)?;
                    let target = row_max.narrow(0, first, count)?;
                    let params = [(count * rows) as u32, rows as u32, start(&part), start(&target)];
                    let share = Share::Groups(count * rows, rows);
                    run(gpu, &ROW_MAX, None, &[&part, &target], &params, share)?;
                }
                weigh(&row_max, None, rows)
            }
        }
    }

    /// `u S` of every head, for rows `u` `[N, width]`.
    pub(super) fn spread(&self, u: &Tensor) -> Result<Spread> {
        let (tokens, width) = (u.shape()[0], u.shape()[1]);
        let heads = self.heads();
        match self {
            Prepared::QueriesKeys { q, k, attention, lse, .. } => {
                let x = u.reshape(&[1, 1, tokens, width])?.expand(&[1, heads, tokens, width])?;
                let values = attention.transposed(q, k, lse, &x)?;
                let strides = values.strides();
                let place = [start(&values), strides[1] as u32, strides[2] as u32, 1];
                Ok(Spread { values, heads, place })
            }
            Prepared::Maps(maps) => {
                let x = maps.reshape(&[1, heads, tokens, tokens])?;
                // Every row once a head; those of one head share its map.
                let by_head = Tensor::uninit(u.gpu(), &[heads, width, tokens], DType::F32)?;
                let rows = u.permute(&[1, 0])?.split(0, &[1, width])?;
                ops::copy(&rows.expand(by_head.shape())?, &by_head)?;
                let weights = by_head.reshape(&[1, heads * width, tokens])?;
                let values = column_sums(Columns::new(&x).with_weights(&weights))?;
                let row = values.strides()[1] as u32;
                let place = [start(&values), row * width as u32, 1, row];
                Ok(Spread { values, heads, place })
            }
        }
    }
}

/// Attention by this configuration: the layer before's, where it is the same.
fn reuse(gpu: &Gpu, last: &mut Option<Attention>, config: dense::Config) -> Result<Attention> {
    match last {
        Some(attention) if *attention.config() == config => Ok(attention.clone()),
        _ => Ok(last.insert(Attention::new(gpu, config)?).clone()),
    }
}
