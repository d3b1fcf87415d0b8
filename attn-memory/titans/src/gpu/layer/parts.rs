//! Small steps that all combinations share; rows are `[batch, tokens, ..]`.

use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::norm::{RmsNorm, rms_norm};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::{ArrayBase, Data, Dimension};

use crate::gpu::kernels::{GATE, Run};
use crate::gpu::walk::whole;

/// An array of the reference on a device, in f32.
pub(super) fn upload<S, D>(gpu: &Gpu, x: &ArrayBase<S, D>) -> Result<Tensor>
where
    S: Data<Elem = f64>,
    D: Dimension,
{
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn())
}

/// `x W^T` for `W` `[out, in]`.
pub(super) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    matmul_with(x, &w.permute(&[1, 0])?, &Epilogue::new())
}

/// Heads that lie side by side from column `start` on, as `[batch, heads, tokens, dim]`.
pub(super) fn heads(x: &Tensor, start: usize, [heads, dim]: [usize; 2]) -> Result<Tensor> {
    x.narrow(2, start, heads * dim)?.split(2, &[heads, dim])?.permute(&[0, 2, 1, 3])
}

/// The inverse of [`heads`].
pub(super) fn merge(x: &Tensor) -> Result<Tensor> {
    let rows = x.permute(&[0, 2, 1, 3])?.contiguous()?;
    let &[batch, tokens, heads, dim] = rows.shape() else { return Ok(rows) };
    rows.reshape(&[batch, tokens, heads * dim])
}

/// The elements in a buffer of their own: a view would keep all of the one that it lies in.
pub(super) fn owned(x: &Tensor) -> Result<Tensor> {
    let copy = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    ops::copy(x, &copy)?;
    Ok(copy)
}

/// Parts behind each other along dimension `dim`, at least one; extents of 1 in front of it repeat.
pub(super) fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let all: Vec<_> = parts.iter().filter(|part| part.shape()[dim] > 0).collect();
    if let [one] = all[..] {
        return Ok((*one).clone());
    }
    let mut shape = parts[parts.len() - 1].shape().to_vec();
    shape[dim] = parts.iter().map(|part| part.shape()[dim]).sum();
    let joined = Tensor::uninit(parts[0].gpu(), &shape, DType::F32)?;
    let mut from = 0;
    for part in all {
        let target = joined.narrow(dim, from, part.shape()[dim])?;
        ops::copy(&part.expand(target.shape())?, &target)?;
        from += part.shape()[dim];
    }
    Ok(joined)
}

/// The first extent, which is 1, as `batch` in buffers of their own.
pub(super) fn repeated(x: &Tensor, batch: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[0] = batch;
    owned(&x.expand(&shape)?)
}

/// `up * sigmoid(gate)`; `up` may be shorter, and repeats.
pub(super) fn opened(up: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (up, gate) = (whole(up)?, whole(gate)?);
    let out = Tensor::uninit(gate.gpu(), gate.shape(), DType::F32)?;
    if out.is_empty() {
        return Ok(out);
    }
    let run = Run {
        source: &GATE,
        activation: None,
        tensors: &[&up, &gate, &out],
        count: out.len(),
        params: &[up.len() as u32],
        steps: 0,
        work: 16,
    };
    run.record(gate.gpu())?;
    Ok(out)
}

/// Attention gated by a memory: `RMSNorm(y) gain_y * sigmoid(RMSNorm(m) gain_m)`.
pub(super) fn gate(y: &Tensor, m: &Tensor, gains: &[Tensor; 2], epsilon: f32) -> Result<Tensor> {
    let norm = RmsNorm::new(epsilon);
    opened(&rms_norm(y, &gains[0], &norm)?, &rms_norm(m, &gains[1], &norm)?)
}
