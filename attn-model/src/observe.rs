//! Looking into a model while it runs.

use std::ops::Range;

use attn_wgpu::attention::Inputs;
use attn_wgpu::sample::top_k;
use attn_wgpu::{DType, Tensor, ops};

use crate::Result;
use crate::policy::Layer;

/// Bytes of weights of attention that are computed at once where only a part of them is kept.
const BLOCK_BYTES: usize = 16 << 20;

/// Sees what a model computes, layer by layer. Tensors are handles to what has been recorded: reading
/// one submits everything before it.
///
/// Looking on changes no bit of what the model computes.
pub trait Observer {
    /// The residual stream `[tokens, hidden]`: behind the embedding with `layer` 0, and behind each
    /// layer, the first of which is 1.
    ///
    /// # Errors
    /// Whatever the observer makes of it; the pass ends there.
    fn hidden(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        let _ = (layer, hidden);
        Ok(())
    }

    /// What is wanted of the attention of a layer, the first of which is 0, in a pass of the tokens
    /// `tokens`, counted from the beginning of the sequence. Nothing by default.
    fn wants(&mut self, layer: usize, tokens: Range<usize>) -> Wants {
        let _ = (layer, tokens);
        Wants::nothing()
    }

    /// What was wanted of a layer. Not called for layers of which nothing was.
    ///
    /// # Errors
    /// Whatever the observer makes of it; the pass ends there.
    fn attention(&mut self, layer: usize, view: &AttentionView) -> Result<()> {
        let _ = (layer, view);
        Ok(())
    }
}

/// Sees nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// What an observer wants of a layer's attention.
///
/// Outputs are those of the session's policy, after [edits](crate::HeadEdits). All that follows from
/// weights is of the model's own attention on this layer's queries and keys, whatever the policy made of
/// them. Only [`Wants::map`] takes memory that grows with the product of new tokens and all tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Wants {
    /// [`AttentionView::out`] alone.
    pub outputs: bool,
    /// Rotated queries and keys, and values.
    pub inputs: bool,
    /// Key of the largest weight of each row.
    pub argmax: bool,
    /// So many largest weights of each row, with their keys.
    pub top_k: Option<usize>,
    /// Sum of the weights of each key over the rows of this pass.
    pub column_sums: bool,
    /// Weights of these queries, counted from the beginning of the sequence; those that do not run in
    /// this pass are left out.
    pub rows: Vec<usize>,
    /// All weights.
    pub map: bool,
}

impl Wants {
    /// Nothing at all.
    pub fn nothing() -> Self {
        Wants::default()
    }

    /// Also the output of every head.
    pub fn with_outputs(self) -> Self {
        Wants { outputs: true, ..self }
    }

    /// Also rotated queries and keys, and values.
    pub fn with_inputs(self) -> Self {
        Wants { inputs: true, ..self }
    }

    /// Also the key of the largest weight of each row.
    pub fn with_argmax(self) -> Self {
        Wants { argmax: true, ..self }
    }

    /// Also the `k` largest weights of each row.
    pub fn with_top_k(self, k: usize) -> Self {
        Wants { top_k: Some(k), ..self }
    }

    /// Also the sum of the weights of each key.
    pub fn with_column_sums(self) -> Self {
        Wants { column_sums: true, ..self }
    }

    /// Also the weights of these queries.
    pub fn with_rows(self, rows: impl IntoIterator<Item = usize>) -> Self {
        Wants { rows: rows.into_iter().collect(), ..self }
    }

    /// Also all weights.
    pub fn with_map(self) -> Self {
        Wants { map: true, ..self }
    }
}

/// One layer's attention of the M new tokens of a pass to all N tokens.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttentionView {
    /// Output of every head, `[1, heads, M, head_dim]`, with any strides.
    pub out: Tensor,
    /// With [`Wants::inputs`].
    pub inputs: Option<AttentionInputs>,
    /// With [`Wants::argmax`]: the key of the largest weight, the first of several, `[1, heads, M]`, u32.
    pub argmax: Option<Tensor>,
    /// With [`Wants::top_k`].
    pub top: Option<TopKeys>,
    /// With [`Wants::column_sums`]: `[1, heads, N]`, f32.
    pub column_sums: Option<Tensor>,
    /// With [`Wants::rows`], if any of them ran.
    pub rows: Option<Rows>,
    /// With [`Wants::map`]: `[1, heads, M, N]`, f32, 0 where the mask allows nothing.
    pub map: Option<Tensor>,
}

/// What attention reads, in the type of the cache.
#[derive(Debug, Clone)]
pub struct AttentionInputs {
    /// Rotated queries, `[1, heads, M, head_dim]`.
    pub q: Tensor,
    /// Rotated keys, `[1, heads_kv, N, head_dim]`.
    pub k: Tensor,
    /// Values, `[1, heads_kv, N, head_dim]`.
    pub v: Tensor,
}

/// The largest weights of each row, largest first.
#[derive(Debug, Clone)]
pub struct TopKeys {
    /// `[1, heads, M, k]`, f32. Behind all keys that a row sees, 0.
    pub weights: Tensor,
    /// `[1, heads, M, k]`, u32. Where the weight is 0, any key, or `u32::MAX`.
    pub keys: Tensor,
}

/// Weights of some queries.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The queries, counted from the beginning of the sequence, as they were asked for.
    pub queries: Vec<usize>,
    /// `[1, heads, queries, N]`, f32.
    pub weights: Tensor,
}

/// Computes what is wanted of a layer.
pub(crate) fn view(layer: &Layer<'_>, out: &Tensor, wants: &Wants) -> Result<AttentionView> {
    let mut view = AttentionView {
        out: out.clone(),
        inputs: None,
        argmax: None,
        top: None,
        column_sums: None,
        rows: None,
        map: None,
    };
    let plain = Wants { outputs: true, ..Wants::nothing() };
    if *wants == plain {
        return Ok(view);
    }
    let eye = Eye { layer, q: layer.rotated_q()?, k: layer.rotated_keys()?, v: layer.values()? };
    if wants.inputs {
        view.inputs =
            Some(AttentionInputs { q: eye.q.clone(), k: eye.k.clone(), v: eye.v.clone() });
    }
    if wants.argmax {
        view.argmax = layer.argmax()?;
    }
    if wants.column_sums {
        view.column_sums = Some(layer.attention().column_sums(eye.inputs(), &layer.lse()?)?);
    }
    if let Some(k) = wants.top_k {
        view.top = Some(eye.top(k)?);
    }
    let ran = eye.first()..eye.keys();
    let queries: Vec<usize> = wants.rows.iter().copied().filter(|row| ran.contains(row)).collect();
    if !queries.is_empty() {
        let weights = eye.rows(&queries)?;
        view.rows = Some(Rows { queries, weights });
    }
    if wants.map {
        view.map = Some(layer.attention().weights(eye.inputs(), &layer.lse()?)?);
    }
    Ok(view)
}

/// Computes weights again from queries, keys and log-sum-exps.
struct Eye<'a> {
    layer: &'a Layer<'a>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Eye<'_> {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.q, &self.k, &self.v)
    }

    fn heads(&self) -> usize {
        self.q.shape()[1]
    }

    fn queries(&self) -> usize {
        self.q.shape()[2]
    }

    fn keys(&self) -> usize {
        self.k.shape()[2]
    }

    /// Number of the first query in the sequence.
    fn first(&self) -> usize {
        self.keys() - self.queries()
    }

    /// Weights of the queries `block` of this pass on the keys up to the last of them: none of a model's
    /// masks lets a query see a later key. `[1, heads, block, keys]`.
    fn block(&self, block: Range<usize>) -> Result<Tensor> {
        let keys = self.first() + block.end;
        let q = self.q.narrow(2, block.start, block.len())?;
        let (k, v) = (self.k.narrow(2, 0, keys)?, self.v.narrow(2, 0, keys)?);
        let lse = self.layer.lse()?.narrow(2, block.start, block.len())?.contiguous()?;
        Ok(self.layer.attention().weights(Inputs::new(&q, &k, &v), &lse)?)
    }

    fn rows(&self, queries: &[usize]) -> Result<Tensor> {
        let shape = [1, self.heads(), queries.len(), self.keys()];
        let rows = Tensor::zeros(self.q.gpu(), &shape, DType::F32)?;
        let mut start = 0;
        for run in queries.chunk_by(|a, b| *b == a + 1) {
            let own = run[0] - self.first();
            let weights = self.block(own..own + run.len())?;
            let target = rows.narrow(2, start, run.len())?.narrow(3, 0, weights.shape()[3])?;
            ops::copy(&weights, &target)?;
            start += run.len();
        }
        Ok(rows)
    }

    fn top(&self, k: usize) -> Result<TopKeys> {
        let (gpu, heads, queries) = (self.q.gpu(), self.heads(), self.queries());
        let shape = [1, heads, queries, k];
        let weights = Tensor::zeros(gpu, &shape, DType::F32)?;
        let keys = Tensor::full(gpu, &shape, u32::MAX)?;
        let at_once = (BLOCK_BYTES / 4 / (heads * self.keys()).max(1)).max(1);
        for start in (0..queries).step_by(at_once) {
            let len = at_once.min(queries - start);
            let block = self.block(start..start + len)?;
            let seen = block.shape()[3];
            let found = k.min(seen);
            let (values, numbers) = top_k(&block.reshape(&[heads * len, seen])?, found)?;
            for (found_part, target) in [(values, &weights), (numbers, &keys)] {
                let target = target.narrow(2, start, len)?.narrow(3, 0, found)?;
                ops::copy(&found_part.reshape(&[1, heads, len, found])?, &target)?;
            }
        }
        Ok(TopKeys { weights, keys })
    }
}
