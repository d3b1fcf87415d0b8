//! What all kernels of one call share: checks, addressable views, parameters, tables.

use attn_core::{AttentionShape, Lengths, Mask};

use super::jobs::{Job, bytes};
use super::mask_table::{Side, mask_table};
use super::params::{Common, Form, pair, place};
use super::{Attention, Inputs, MAX_DIM, Table};
use crate::error::{Error, Result};
use crate::guard::lock;
use crate::kernel::Binding;
use crate::tensor::{DType, Tensor};
use crate::vec4::{is_vec4, packed};

/// Longest sequence: positions, windows and their sums stay inside 32 bits.
const MAX_TOKENS: usize = (1 << 30) - 1;

/// Tables kept by one [`Attention`]: forward, both backward kernels, and one of other lengths.
const MAX_TABLES: usize = 4;

/// Inputs of one call, in a form that kernels can address.
pub(crate) struct Call {
    pub(crate) shape: AttentionShape,
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    /// `[heads]`, contiguous.
    pub(crate) sinks: Option<Tensor>,
}

/// A window's binding, and its place in the parameters.
pub(crate) struct Bound {
    pub(crate) binding: Binding,
    pub(crate) place: [u32; 4],
}

/// The inputs' windows of one job.
pub(crate) struct Bounds {
    pub(crate) q: Bound,
    pub(crate) k: Bound,
    pub(crate) v: Bound,
}

impl Call {
    pub(crate) fn dtype(&self) -> DType {
        self.q.dtype()
    }

    /// Upper bound of the operations of one query row, in one forward pass.
    pub(crate) fn work_per_row(&self, mask: &Mask) -> f64 {
        let keys = match mask.as_window() {
            Some((left, right)) => {
                left.saturating_add(right).saturating_add(1).min(self.shape.keys)
            }
            None => self.shape.keys,
        };
        2.0 * (self.shape.dim_qk + self.shape.dim_v) as f64 * keys as f64
    }

    /// Upper bound of the keys (or queries) that a tile of `tile` rows visits, of `length` in all.
    pub(crate) fn steps(&self, mask: &Mask, tile: usize, length: usize) -> usize {
        match mask.as_window() {
            Some((left, right)) => length.min(left.saturating_add(right).saturating_add(tile)),
            None => length,
        }
    }

    /// Bytes that a job binds of the inputs, if it reads `queries` and all keys in `keys`.
    pub(crate) fn windows(
        &self,
        job: &Job,
        queries: &std::ops::Range<usize>,
        keys: &std::ops::Range<usize>,
    ) -> Result<Vec<(&'static str, u64)>> {
        let heads_kv = job.heads_kv(self.shape.group());
        Ok(vec![
            ("q", bytes(&job.window(&self.q, &job.heads, queries)?)),
            ("k", bytes(&job.window(&self.k, &heads_kv, keys)?)),
            ("v", bytes(&job.window(&self.v, &heads_kv, keys)?)),
        ])
    }

    pub(crate) fn bind(
        &self,
        job: &Job,
        queries: &std::ops::Range<usize>,
        keys: &std::ops::Range<usize>,
    ) -> Result<Bounds> {
        let heads_kv = job.heads_kv(self.shape.group());
        Ok(Bounds {
            q: bind(&job.window(&self.q, &job.heads, queries)?, queries.start),
            k: bind(&job.window(&self.k, &heads_kv, keys)?, keys.start),
            v: bind(&job.window(&self.v, &heads_kv, keys)?, keys.start),
        })
    }
}

/// Binds a window whose first token has number `first`.
pub(crate) fn bind(window: &Tensor, first: usize) -> Bound {
    let (binding, start) = window.binding();
    Bound { binding, place: place(window, start, first) }
}

impl Attention {
    /// The form of this configuration's kernels for inputs of `dtype`.
    pub(crate) fn form(&self, dtype: DType) -> Form<'_> {
        Form {
            dtype,
            soft_cap: self.config.soft_cap.is_some(),
            modifier: self.config.modifier.as_ref(),
            bits: matches!(self.config.mask, Mask::Bits(_)),
        }
    }

    /// Checks everything that can be wrong with a call.
    pub(crate) fn check(&self, inputs: Inputs<'_>) -> Result<AttentionShape> {
        let Inputs { q, k, v, sinks } = inputs;
        let dtype = q.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(wrong_type("q", "f32, f16 or bf16", q));
        }
        for (arg, tensor) in [("k", k), ("v", v)] {
            if tensor.dtype() != dtype {
                return Err(wrong_type(arg, &format!("{} as q", dtype.name()), tensor));
            }
        }
        for (arg, tensor) in [("q", q), ("k", k), ("v", v)] {
            self.check_device(arg, tensor)?;
        }
        let shape = AttentionShape::from_shapes(q.shape(), k.shape(), v.shape())?;
        if let Some(sinks) = sinks {
            self.check_device("sinks", sinks)?;
            check_output("sinks", sinks, &[shape.heads], DType::F32)?;
        }
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

    pub(crate) fn check_device(&self, arg: &'static str, tensor: &Tensor) -> Result<()> {
        if tensor.gpu().is_same(&self.gpu) {
            return Ok(());
        }
        let (expected, got) = (self.gpu.adapter().name.as_str(), "a tensor of another Gpu");
        Err(attn_core::Error::config(arg, expected, got).into())
    }

    /// Inputs that kernels can address: packed where they are not so already.
    pub(crate) fn prepare(&self, inputs: Inputs<'_>, shape: AttentionShape) -> Result<Call> {
        Ok(Call {
            shape,
            q: vec4(inputs.q, false)?,
            k: vec4(inputs.k, true)?,
            v: vec4(inputs.v, true)?,
            sinks: match inputs.sinks {
                Some(sinks) => Some(sinks.contiguous()?),
                None => None,
            },
        })
    }

    /// Parameters of the call and of one job, tiles not included.
    pub(crate) fn common(&self, call: &Call, job: &Job, table: &Table, bounds: &Bounds) -> Common {
        let shape = &call.shape;
        let scale = self.config.scale_for(shape.dim_qk);
        let natural = self.form(call.dtype()).natural();
        let scale = if natural { scale } else { scale * std::f64::consts::LOG2_E };
        Common {
            heads_group: pair(job.heads.len(), job.group(shape.group())),
            queries: shape.queries as u32,
            keys: shape.keys as u32,
            dims: pair(call.q.shape()[3] / 4, call.v.shape()[3] / 4),
            q: bounds.q.place,
            k: bounds.k.place,
            v: bounds.v.place,
            scale: scale as f32,
            soft_cap: self.config.soft_cap.unwrap_or(0.0) as f32,
            left: table.left,
            right: table.right,
            first_batch: job.batch.start as u32,
            first_head: job.heads.start as u32,
            ..Common::default()
        }
    }

    /// The table for tiles of `tile` queries (or keys).
    pub(crate) fn table(&self, lengths: Lengths, tile: usize, side: Side) -> Result<Table> {
        let mut cached = lock(&self.tables);
        let window = self.config.mask.as_window();
        // A window needs no table, so that the modifier's parameters serve for all lengths.
        let fits = |table: &&Table| {
            window.is_some()
                || (table.lengths == lengths && table.tile == tile && table.side == side)
        };
        if let Some(table) = cached.iter().find(fits) {
            return Ok(table.clone());
        }
        let mut words = self.modifier.clone();
        let (left, right) = match window {
            Some((left, right)) => (left.min(MAX_TOKENS) as i32, right.min(MAX_TOKENS) as i32),
            None => {
                let (mask, first_row) = mask_table(&self.config.mask, lengths, tile, side);
                words.extend(mask);
                (-1, (self.modifier.len() + first_row) as i32)
            }
        };
        if words.is_empty() {
            // A kernel binds something even where there is nothing to read.
            words.push(0);
        }
        let words = Tensor::from_slice(&self.gpu, &words, &[words.len()])?;
        let table = Table { lengths, tile, side, words, left, right };
        if cached.len() >= MAX_TABLES {
            cached.remove(0);
        }
        cached.push(table.clone());
        Ok(table)
    }

    /// Refuses loops that are too long for this device, which would end them early and give a wrong
    /// result without a word.
    pub(crate) fn check_steps(&self, what: &str, steps: usize) -> Result<()> {
        self.gpu.capabilities().check_steps(format!("`{what}` of this many tokens"), steps)
    }

    /// Something to bind where a kernel's binding is not used.
    pub(crate) fn unused(&self) -> Result<Binding> {
        Ok(Tensor::uninit(&self.gpu, &[4], DType::F32)?.binding().0)
    }
}

pub(crate) fn wrong_type(arg: &'static str, expected: &str, tensor: &Tensor) -> Error {
    let (expected, got) = (expected.into(), tensor.dtype().name().into());
    attn_core::Error::Dtype { arg, expected, got }.into()
}

/// Checks a tensor that is given to be written, or to be read as it is.
pub(crate) fn check_output(
    arg: &'static str,
    tensor: &Tensor,
    shape: &[usize],
    dtype: DType,
) -> Result<()> {
    if tensor.dtype() != dtype {
        return Err(wrong_type(arg, dtype.name(), tensor));
    }
    let repeats = tensor.shape().iter().zip(tensor.strides()).any(|(&n, &s)| n > 1 && s == 0);
    let statistics = shape.len() < 4 && arg != "sinks";
    if tensor.shape() != shape || repeats || (statistics && !tensor.is_contiguous()) {
        let layout = if statistics { ", contiguous" } else { " without repeated elements" };
        return Err(
            attn_core::Error::shape(arg, format!("{shape:?}{layout}"), tensor.shape()).into()
        );
    }
    Ok(())
}

/// The tensor itself, or a packed copy with the last dimension filled up with zeros. With
/// `whole_heads`, heads that interleave are packed too, if one of them would exceed a binding.
pub(crate) fn vec4(tensor: &Tensor, whole_heads: bool) -> Result<Tensor> {
    let limit = tensor.gpu().capabilities().max_binding_bytes;
    let size = tensor.dtype().bytes() as u64;
    let head = || (tensor.shape()[2] as u64).saturating_mul(tensor.strides()[2] as u64 * size);
    if is_vec4(tensor) && !(whole_heads && head() > limit && !tensor.is_contiguous()) {
        return Ok(tensor.clone());
    }
    packed(tensor)
}
