//! Scores of pairs of blocks.

use super::select_kernel;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, Constants, KernelSource};
use crate::matmul::{Epilogue, matmul_into};
use crate::ops;
use crate::rows::{self, Extents, Place, Sharing};
use crate::tensor::{DType, Tensor, row_major};

pub(crate) const BLOCK_ROWS: KernelSource = select_kernel!("select_block_rows");

/// Loops over a row.
pub(crate) const PASSES: usize = 2;

/// How [`block_scores`] scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockScores {
    /// Factor of the products.
    pub scale: f32,
    /// Whether a block of queries sees only the blocks of keys up to its own, the last block of either
    /// side by side.
    pub causal: bool,
    /// Whether rows become probabilities.
    pub softmax: bool,
    /// Rows of the result are filled up to a multiple of so many elements, as if with blocks that no
    /// query sees. With 32, the elements of several rows are whole words of bits.
    pub align: usize,
}

impl BlockScores {
    /// Causal probabilities.
    pub fn new(scale: f32) -> BlockScores {
        BlockScores { scale, causal: true, softmax: true, align: 1 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    out: Place,
    out_chunks: u32,
    first: i32,
    nothing: u32,
}

/// Scores of every block of queries with every block of keys, `scale q_I . k_J`, for `q`
/// `[B, H, nq, D]` and `k` `[B, Hkv, nk, D]`, f32 or half types: f32 `[B, H, nq, nk]`, rows filled up as
/// `config.align` says. Blocks that a row does not see have -inf, or probability 0.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types; [`crate::Error::Limit`] for rows that need longer
/// loops than the device does.
pub fn block_scores(q: &Tensor, k: &Tensor, config: &BlockScores) -> Result<Tensor> {
    let gpu = q.gpu();
    let extents = Extents4::of(q, k)?;
    if config.align == 0 {
        return Err(attn_core::Error::config("align", "at least 1", 0).into());
    }
    let Extents4 { batch, heads, queries, keys, .. } = extents;
    let shape = [batch, heads, queries, keys.next_multiple_of(config.align)];
    if shape.contains(&0) {
        return Tensor::uninit(gpu, &shape, DType::F32);
    }
    let sharing = Sharing::new(shape[3], PASSES, gpu.capabilities());
    sharing.check("block_scores", shape[3], PASSES, gpu)?;
    let kernel = gpu.kernel(&BLOCK_ROWS, constants(&sharing, config.causal, config.softmax))?;
    let x = logits(&grouped(q, config.scale, &extents)?, k, queries)?;
    rows::write(gpu, &shape, DType::F32, |out| {
        rows::windows(&[&x, out], 0..2, &mut |windows| {
            let ((x, x_place), (out, out_place)) = (rows::bind(windows[0]), rows::bind(windows[1]));
            let params = Params {
                extents: Extents::of(windows[0], keys),
                x: x_place,
                out: out_place,
                out_chunks: (windows[1].shape()[3] / 4) as u32,
                first: keys as i32 - queries as i32,
                nothing: f32::NEG_INFINITY.to_bits(),
            };
            let groups = sharing.groups(params.extents.rows);
            let (params, work) = (bytemuck::bytes_of(&params), 8.0 * windows[1].len() as f64);
            kernel.dispatch(gpu, &Call { bindings: &[x, out], params, groups, work })
        })
    })
}

pub(crate) fn constants(sharing: &Sharing, causal: bool, softmax: bool) -> Constants {
    sharing.constants().flag("CAUSAL", causal).flag("SOFTMAX", softmax)
}

/// Extents of queries and keys with grouped heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents4 {
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
}

impl Extents4 {
    pub fn of(q: &Tensor, k: &Tensor) -> Result<Extents4> {
        let gpu: &Gpu = q.gpu();
        rows::check("q", q, gpu)?;
        rows::check("k", k, gpu)?;
        let &[batch, heads, queries, dim] = q.shape() else {
            return Err(attn_core::Error::shape("q", "[B, H, M, D]", q.shape()).into());
        };
        match k.shape() {
            &[batch_k, heads_kv, keys, dim_k]
                if batch_k == batch
                    && dim_k == dim
                    && heads.checked_rem(heads_kv).unwrap_or(heads) == 0 =>
            {
                Ok(Extents4 { batch, heads, heads_kv, queries, keys, dim })
            }
            _ => {
                let expected = format!("[{batch}, a divisor of {heads}, N, {dim}]");
                Err(attn_core::Error::shape("k", expected, k.shape()).into())
            }
        }
    }
}

/// Queries in f32, scaled, those of a key head one after another: `[B, Hkv, H / Hkv * M, D]`.
pub(super) fn grouped(q: &Tensor, scale: f32, extents: &Extents4) -> Result<Tensor> {
    let Extents4 { batch, heads, heads_kv, queries, dim, .. } = *extents;
    let q = ops::scale(&ops::convert(q, DType::F32)?, scale)?;
    q.contiguous()?.reshape(&[batch, heads_kv, heads / heads_kv * queries, dim])
}

/// Products of grouped queries `[B, Hkv, g * queries, D]` with keys `[B, Hkv, N, D]`, with rows of whole
/// groups of four: `[B, Hkv * g, queries, N]`.
pub(super) fn logits(q: &Tensor, k: &Tensor, queries: usize) -> Result<Tensor> {
    let (&[batch, heads_kv, rows, _], &[_, _, keys, _]) = (q.shape(), k.shape()) else {
        return Err(attn_core::Error::shape("q", "[B, Hkv, M, D]", q.shape()).into());
    };
    let padded = [batch, heads_kv, rows, keys.next_multiple_of(4)];
    let out = Tensor::uninit(q.gpu(), &padded, DType::F32)?;
    let target = out.narrow(3, 0, keys)?;
    matmul_into(q, &k.permute(&[0, 1, 3, 2])?, &Epilogue::new(), &target)?;
    let heads = (heads_kv * rows).checked_div(queries).unwrap_or(0);
    let strides = row_major(&[batch, heads, queries, padded[3]]);
    Ok(target.with_layout(&[batch, heads, queries, keys], &strides))
}
