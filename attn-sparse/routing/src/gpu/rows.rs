//! Tensors as the steps take them: f32, aligned, with heads repeated; and sums over repeated heads.

use attn_wgpu::scan::{Columns, column_sums_into};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{Each, NORM};
use crate::reference::VARIANCE_EPSILON;

/// Step 2 for `[batch, heads, tokens, dim]`, with rows filled up to whole groups of four elements.
pub(super) fn normed(x: &Tensor) -> Result<Tensor> {
    let dim = x.shape()[3];
    let x = ops::convert(x, DType::F32)?;
    let (strides, start) = (x.strides(), x.binding().1);
    let outer = strides[..3].iter().chain([&start]);
    let direct = dim.is_multiple_of(4) && strides[3] == 1 && outer.copied().all(|s| s % 4 == 0);
    let x = if direct { x.clone() } else { aligned(&x)? };
    let mut shape = x.shape().to_vec();
    shape[3] = dim.next_multiple_of(4);
    let out = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    let chunks = shape[3] / 4;
    let place = [x.binding().1, x.strides()[0], x.strides()[1], x.strides()[2]];
    let mut params = vec![dim as u32, chunks as u32, (VARIANCE_EPSILON as f32).to_bits()];
    params.extend([shape[1] as u32, shape[2] as u32]);
    params.extend(place.map(|elements| (elements / 4) as u32));
    let run = Each {
        source: &NORM,
        flags: &[],
        tensors: &[&x, &out],
        count: out.len() / shape[3],
        params: &params,
        steps: 3 * chunks,
        work: 8 * dim,
    };
    run.record(x.gpu())?;
    Ok(out)
}

/// The tensor in f32, contiguous from the beginning of a binding on, rows filled up with zeros to
/// whole groups of four elements.
pub(super) fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] = shape[last].next_multiple_of(4);
    if shape == x.shape() && x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x);
    }
    let copy = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(&x, &copy)?;
    Ok(copy)
}

/// The tensor, contiguous from the beginning of a binding on.
pub(super) fn whole(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x.clone());
    }
    let copy = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    ops::copy(x, &copy)?;
    Ok(copy)
}

/// Heads of a contiguous `[batch, heads_kv, tokens, dim]` as often as there are `heads`.
pub(super) fn repeated(x: &Tensor, heads: usize) -> Result<Tensor> {
    let &[batch, heads_kv, tokens, dim] = x.shape() else { return Ok(x.clone()) };
    if heads == heads_kv || x.is_empty() {
        return Ok(x.clone());
    }
    let out = Tensor::uninit(x.gpu(), &[batch, heads, tokens, dim], DType::F32)?;
    let group = heads / heads_kv;
    let each = out.split(1, &[heads_kv, group])?;
    for copy in 0..group {
        ops::copy(&x.split(1, &[heads_kv, 1])?, &each.narrow(2, copy, 1)?)?;
    }
    Ok(out)
}

/// Sums over the heads that [`repeated`] made of one.
pub(super) fn summed(x: &Tensor, heads_kv: usize) -> Result<Tensor> {
    let &[batch, heads, tokens, dim] = x.shape() else { return Ok(x.clone()) };
    if heads == heads_kv || x.is_empty() {
        return Ok(x.clone());
    }
    let out = Tensor::uninit(x.gpu(), &[batch, heads_kv, tokens, dim], DType::F32)?;
    summed_into(x, &out)?;
    Ok(out)
}

/// The same into a tensor whose rows may leave out the padding.
pub(super) fn summed_into(x: &Tensor, out: &Tensor) -> Result<()> {
    ops::write_rows(out, &[x], |out| {
        let &[batch, heads_kv, tokens, dim] = out.shape() else { return Ok(()) };
        let (group, width) = (x.shape()[1] / heads_kv, tokens * dim);
        let members = x.reshape(&[batch, heads_kv, group, width])?;
        column_sums_into(Columns::new(&members), &out.reshape(&[batch, heads_kv, width])?)
    })?;
    Ok(())
}
