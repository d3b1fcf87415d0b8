//! Fused dense attention.

mod jobs;
mod row_table;
mod variant;

use std::sync::{Arc, Mutex};

use attn_core::dense::Config;
use attn_core::{AttentionShape, Lengths};

pub use self::variant::{MAX_DIM, Variant};

use self::jobs::{Job, Views};
use self::row_table::row_table;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::guard::lock;
use crate::kernel::{Call, Kernel, KernelSource};
use crate::ops::{self, SNIPPETS};
use crate::tensor::{DType, Tensor};

const FORWARD: KernelSource = KernelSource {
    name: "attention_forward",
    text: include_str!("../../kernels/attention_forward.wgsl"),
    imports: SNIPPETS,
};

/// Longest sequence: positions, windows and their sums stay inside 32 bits.
const MAX_TOKENS: usize = (1 << 30) - 1;

/// Dense attention on a device: `out = softmax(scale q k^T + mask) v`, as
/// [`attn_core::dense`] defines it, without storing the scores.
///
/// Memory beyond inputs and outputs is constant, except where an input has to be packed first
/// (its last dimension is not contiguous, or a row does not begin at a multiple of 16 bytes) and
/// for masks that are not windows (12 bytes a query).
#[derive(Debug, Clone)]
pub struct Attention {
    gpu: Gpu,
    config: Config,
    /// The mask's table for the lengths of the last call.
    table: Arc<Mutex<Option<Table>>>,
}

#[derive(Debug, Clone)]
struct Table {
    lengths: Lengths,
    tile: usize,
    words: Tensor,
    first_row: usize,
}

/// Queries, keys and values, f32.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: &'a Tensor,
    /// Keys `[batch, heads_kv, keys, dim_qk]`; `heads_kv` divides `heads`.
    pub k: &'a Tensor,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: &'a Tensor,
}

/// What attention computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, queries, dim_v]`; 0 for a query that sees no key.
    pub out: Tensor,
    /// Natural logarithm of the sum of exponentials of the logits, `[batch, heads, queries]`;
    /// -inf for a query that sees no key.
    pub lse: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    heads: u32,
    group: u32,
    queries: u32,
    keys: u32,
    dim_qk: u32,
    dim_v: u32,
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    out: [u32; 4],
    lse_start: u32,
    lse_batch: u32,
    first_tile: u32,
    tiles: u32,
    total: u32,
    scale: f32,
    left: i32,
    right: i32,
    write_lse: u32,
    empty_lse: u32,
}

impl Attention {
    /// Attention by `config` on `gpu`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the configuration is not usable. What depends on lengths is
    /// checked by each call.
    pub fn new(gpu: &Gpu, config: Config) -> Result<Attention> {
        config.validate()?;
        Ok(Attention { gpu: gpu.clone(), config, table: Arc::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Records attention into fresh tensors.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types and masks that do not fit; [`Error::Limit`] where
    /// one row tile, or all keys of one head, exceed a binding; [`Error::OutOfMemory`].
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        let shape = self.check(inputs)?;
        let rows = [shape.batch, shape.heads, shape.queries];
        let lse = Tensor::uninit(&self.gpu, &rows, DType::F32)?;
        let out = Tensor::uninit(&self.gpu, &[rows[0], rows[1], rows[2], shape.dim_v], DType::F32)?;
        self.run(inputs, shape, &out, Some(&lse))?;
        Ok(Output { out, lse })
    }

    /// Records attention into a caller's tensors: `out` with any strides that do not overlap,
    /// `lse`, where wanted, contiguous.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error::Shape`] for outputs of another shape.
    pub fn forward_into(
        &self,
        inputs: Inputs<'_>,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        let shape = self.check(inputs)?;
        let rows = [shape.batch, shape.heads, shape.queries];
        check_output("out", out, &[rows[0], rows[1], rows[2], shape.dim_v])?;
        if let Some(lse) = lse {
            check_output("lse", lse, &rows)?;
            if !lse.is_contiguous() {
                let expected = format!("{rows:?}, contiguous");
                return Err(attn_core::Error::shape("lse", expected, lse.shape()).into());
            }
        }
        self.run(inputs, shape, out, lse)
    }

    fn check(&self, Inputs { q, k, v }: Inputs<'_>) -> Result<AttentionShape> {
        for (arg, tensor) in [("q", q), ("k", k), ("v", v)] {
            check_f32(arg, tensor)?;
            if !tensor.gpu().is_same(&self.gpu) {
                let (expected, got) = (self.gpu.adapter().name.as_str(), "a tensor of another Gpu");
                return Err(attn_core::Error::config(arg, expected, got).into());
            }
        }
        let shape = AttentionShape::from_shapes(q.shape(), k.shape(), v.shape())?;
        self.config.mask.validate(shape.lengths())?;
        for (arg, tensor, dim) in [("q", q, shape.dim_qk), ("v", v, shape.dim_v)] {
            if dim == 0 || dim > MAX_DIM {
                let expected = format!("a last extent of 1 to {MAX_DIM}");
                return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
            }
        }
        for (what, length) in [("queries", shape.queries), ("keys", shape.keys)] {
            if length > MAX_TOKENS {
                let (needed, available) = (length as u64, MAX_TOKENS as u64);
                let limit = "tokens in a sequence";
                return Err(Error::Limit { what: what.into(), limit, needed, available });
            }
        }
        Ok(shape)
    }

    fn run(
        &self,
        inputs: Inputs<'_>,
        shape: AttentionShape,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        if shape.batch * shape.heads * shape.queries == 0 {
            return Ok(());
        }
        if shape.keys == 0 {
            let zero = Tensor::full(&self.gpu, &[1; 4], 0f32)?;
            ops::copy(&zero.expand(out.shape())?, out)?;
            return lse.map_or(Ok(()), |lse| ops::fill(lse, &f32::NEG_INFINITY.to_ne_bytes()));
        }
        if !is_vec4(out) {
            let mut padded = out.shape().to_vec();
            padded[3] = padded[3].next_multiple_of(4);
            let padded = Tensor::uninit(&self.gpu, &padded, DType::F32)?;
            self.run(inputs, shape, &padded, lse)?;
            return ops::copy(&padded.narrow(3, 0, shape.dim_v)?, out);
        }
        let variant =
            Variant::choose(shape.dim_qk, shape.dim_v, shape.queries, self.gpu.capabilities());
        let kernel = self.gpu.kernel(&FORWARD, variant.constants())?;
        // A kernel binds something even where nothing is wanted.
        let unused = Tensor::uninit(&self.gpu, &[1], DType::F32)?;
        let views = Views {
            q: vec4(inputs.q, false)?,
            k: vec4(inputs.k, true)?,
            v: vec4(inputs.v, true)?,
            out: out.clone(),
            lse: lse.cloned(),
            tile: variant.tile(),
            group: shape.group(),
        };
        let (table, left, right) = match self.config.mask.as_window() {
            Some((left, right)) => {
                let cut = |reach: usize| reach.min(MAX_TOKENS) as i32;
                (Tensor::uninit(&self.gpu, &[1], DType::U32)?, cut(left), cut(right))
            }
            None => {
                let table = self.table(shape.lengths(), variant.tile())?;
                (table.words, -1, table.first_row as i32)
            }
        };
        let params = Params {
            queries: shape.queries as u32,
            keys: shape.keys as u32,
            dim_qk: (views.q.shape()[3] / 4) as u32,
            dim_v: (views.v.shape()[3] / 4) as u32,
            scale: (self.config.scale_for(shape.dim_qk) * std::f64::consts::LOG2_E) as f32,
            left,
            right,
            write_lse: u32::from(lse.is_some()),
            empty_lse: f32::NEG_INFINITY.to_bits(),
            ..bytemuck::Zeroable::zeroed()
        };
        let reach = match self.config.mask.as_window() {
            Some((left, right)) => left.saturating_add(right).saturating_add(1).min(shape.keys),
            None => shape.keys,
        };
        let work_per_row = 2.0 * (shape.dim_qk + shape.dim_v) as f64 * reach as f64;
        for job in Job::split(&views, work_per_row, &self.gpu)? {
            self.dispatch(&kernel, &views, &job, params, &table, &unused, work_per_row)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn dispatch(
        &self,
        kernel: &Kernel,
        views: &Views,
        job: &Job,
        params: Params,
        table: &Tensor,
        unused: &Tensor,
        work_per_row: f64,
    ) -> Result<()> {
        let windows = job.windows(views)?;
        let first_query = job.queries(views).start;
        // Rows are numbered from query 0, which may lie in front of the window.
        let place = |tensor: &Tensor, start: usize, first: usize| {
            let stride =
                |d: usize| if tensor.shape()[d] > 1 { tensor.strides()[d] as u32 / 4 } else { 0 };
            // A window of a single token still is that token, whatever its number.
            let token = tensor.strides()[2] as u32 / 4;
            let start = (start as u32 / 4).wrapping_sub(first as u32 * token);
            [start, stride(0), stride(1), token]
        };
        let (q, q_start) = windows.q.binding();
        let (k, k_start) = windows.k.binding();
        let (v, v_start) = windows.v.binding();
        let (out, out_start) = windows.out.binding();
        let (lse, lse_start) = windows.lse.as_ref().unwrap_or(unused).binding();
        let heads = job.heads.len();
        let total = job.batch.len() * heads * job.tiles.len();
        let params = Params {
            heads: heads as u32,
            group: views.group.min(heads) as u32,
            q: place(&windows.q, q_start, first_query),
            k: place(&windows.k, k_start, 0),
            v: place(&windows.v, v_start, 0),
            out: place(&windows.out, out_start, first_query),
            lse_start: (lse_start as u32).wrapping_sub(first_query as u32),
            lse_batch: windows.lse.as_ref().map_or(0, |lse| lse.strides()[0] as u32),
            first_tile: job.tiles.start as u32,
            tiles: job.tiles.len() as u32,
            total: total as u32,
            ..params
        };
        let work = work_per_row * (job.batch.len() * heads * job.queries(views).len()) as f64;
        kernel.dispatch(
            &self.gpu,
            &Call {
                bindings: &[q, k, v, out, lse, table.binding().0],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work,
            },
        )
    }

    fn table(&self, lengths: Lengths, tile: usize) -> Result<Table> {
        let mut cached = lock(&self.table);
        if let Some(table) = cached.as_ref().filter(|t| t.lengths == lengths && t.tile == tile) {
            return Ok(table.clone());
        }
        let (words, first_row) = row_table(&self.config.mask, lengths, tile);
        let words = Tensor::from_slice(&self.gpu, &words, &[words.len()])?;
        let table = Table { lengths, tile, words, first_row };
        *cached = Some(table.clone());
        Ok(table)
    }
}

fn check_f32(arg: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::F32 {
        return Ok(());
    }
    let (expected, got) = (DType::F32.name().into(), tensor.dtype().name().into());
    Err(attn_core::Error::Dtype { arg, expected, got }.into())
}

fn check_output(arg: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    check_f32(arg, tensor)?;
    let repeats = tensor.shape().iter().zip(tensor.strides()).any(|(&n, &s)| n > 1 && s == 0);
    if tensor.shape() != shape || repeats {
        let expected = format!("{shape:?} without repeated elements");
        return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
    }
    Ok(())
}

/// Whether kernels can address the tensor in vec4s.
fn is_vec4(tensor: &Tensor) -> bool {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let rows = (0..3).all(|d| shape[d] == 1 || strides[d].is_multiple_of(4));
    rows && strides[3] == 1 && shape[3].is_multiple_of(4) && tensor.buffer().1.is_multiple_of(4)
}

/// The tensor itself, or a packed copy with the last dimension filled up with zeros. With
/// `whole_heads`, heads that interleave are packed too, if one of them would exceed a binding.
fn vec4(tensor: &Tensor, whole_heads: bool) -> Result<Tensor> {
    let limit = tensor.gpu().capabilities().max_binding_bytes;
    let head = || (tensor.shape()[2] as u64).saturating_mul(tensor.strides()[2] as u64 * 4);
    if is_vec4(tensor) && !(whole_heads && head() > limit && !tensor.is_contiguous()) {
        return Ok(tensor.clone());
    }
    let mut shape = tensor.shape().to_vec();
    shape[3] = shape[3].next_multiple_of(4);
    let packed = Tensor::uninit(tensor.gpu(), &shape, tensor.dtype())?;
    ops::copy(tensor, &packed)?;
    Ok(packed)
}
