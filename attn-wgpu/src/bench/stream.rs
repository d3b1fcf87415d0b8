//! Streams: tokens that are read one by one behind a text.

use std::ops::Range;

use attn_core::dense::Config;
use attn_core::ndarray::{Array4, Axis, Slice};
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};

use super::{DenseAttention, Mechanism, Prepared, Reference, pick_rows, upload_inputs};
use crate::attention::{Attention, Inputs};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

/// Tokens of a benchmark that a stream reads, one by one: the last ones of the text.
pub const STREAM_TOKENS: usize = 64;

/// A mechanism with something that stands for all tokens before: a state, or a cache.
pub trait Stream: Send + Sync {
    /// Name in tables and reports; by its end, `-stream`, they know what its times are of.
    fn name(&self) -> &'static str;

    /// The mechanism on whole texts, which gives the same results.
    fn whole(&self) -> &dyn Mechanism;

    /// Reads what is before the last [`STREAM_TOKENS`]. A run then reads these, each time from there,
    /// and returns the result of each, `[batch, heads, 1, dim_v]`. Inputs have queries of these alone.
    ///
    /// # Errors
    /// Those of the device, and of inputs that the mechanism does not take.
    fn begin(&self, gpu: &Gpu, inputs: &HostInputs, config: &Config) -> Result<Box<dyn Prepared>>;

    /// Floating-point operations of one token behind so many keys.
    fn flops(&self, shape: &AttentionShape) -> f64;

    /// Bytes that one token has to move at least.
    fn bytes(&self, shape: &AttentionShape) -> f64;
}

/// A stream as a mechanism of problems with [`STREAM_TOKENS`] queries at the end of more keys.
#[derive(Debug, Clone, Copy)]
pub struct Streamed<S>(pub S);

/// The extents of the text with all of its tokens.
fn whole(shape: &AttentionShape) -> AttentionShape {
    AttentionShape { queries: shape.keys, ..*shape }
}

/// The numbers of the tokens that are read one by one.
fn last(keys: usize) -> Vec<usize> {
    (keys - STREAM_TOKENS..keys).collect()
}

impl<S: Stream> Mechanism for Streamed<S> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn is_for(&self, shape: &AttentionShape, config: &Config) -> bool {
        let tokens = shape.queries == STREAM_TOKENS && shape.keys.is_multiple_of(STREAM_TOKENS);
        let behind = config.mask == Mask::Causal && shape.keys > STREAM_TOKENS;
        tokens && behind && self.0.whole().is_for(&whole(shape), config)
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        inputs: &HostInputs,
        config: &Config,
    ) -> Result<Box<dyn Prepared>> {
        self.0.begin(gpu, inputs, config)
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        _: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let keys = inputs.k.shape()[2];
        let (batch, heads, _, dim) = inputs.q.dim();
        // As `text` repeats them.
        let q = Array4::from_shape_fn((batch, heads, keys, dim), |(b, h, t, d)| {
            inputs.q[[b, h, t % STREAM_TOKENS, d]]
        });
        let text = HostArrays { q, ..inputs.clone() };
        let all = self.0.whole().reference(&text, config, &last(keys), chosen)?;
        let each = |result: &Array4<f64>| {
            let token = |t| result.slice_axis(Axis(2), Slice::from(t..t + 1)).to_owned();
            (0..STREAM_TOKENS).map(token).collect::<Vec<_>>()
        };
        let results = all.results.iter().take(1).flat_map(each).collect();
        Ok(Reference { results, logits: all.logits })
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        config: &Config,
        _: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        let text = text(inputs);
        let shape = text.shape;
        let all = self.0.whole().simple(&text, config, &last(shape.keys), chosen)?;
        let Some(out) = all.and_then(|results| results.into_iter().next()) else {
            return Ok(None);
        };
        let extents = [shape.batch, shape.heads, STREAM_TOKENS, shape.dim_v];
        let token = |t| pick_rows(&out, extents, &[t]);
        Ok(Some((0..STREAM_TOKENS).map(token).collect()))
    }

    fn flops(&self, shape: &AttentionShape, _: &Config) -> f64 {
        STREAM_TOKENS as f64 * self.0.flops(shape)
    }

    fn bytes(&self, shape: &AttentionShape, _: &Config) -> f64 {
        STREAM_TOKENS as f64 * self.0.bytes(shape)
    }
}

/// The text before the tokens of a stream, and each of these, with as many queries as keys.
pub fn tokens(inputs: &HostInputs) -> (HostInputs, Vec<HostInputs>) {
    let text = text(inputs);
    let before = inputs.shape.keys - STREAM_TOKENS;
    let some = |tokens: Range<usize>| {
        let rows: Vec<_> = tokens.collect();
        let shape = AttentionShape { queries: rows.len(), keys: rows.len(), ..text.shape };
        let HostInputs { q, k, v, sinks, .. } = &text;
        let (q, k) = (pick_rows(q, text.shape.q(), &rows), pick_rows(k, text.shape.k(), &rows));
        HostInputs { shape, q, k, v: pick_rows(v, text.shape.v(), &rows), sinks: sinks.clone() }
    };
    let each = (before..inputs.shape.keys).map(|t| some(t..t + 1)).collect();
    (some(0..before), each)
}

/// The inputs with a query for every key. Nobody asks for what those before the stream read, so that any
/// will do: the stream's own, again and again.
fn text(inputs: &HostInputs) -> HostInputs {
    let shape = whole(&inputs.shape);
    let planes = inputs.q.chunks_exact((STREAM_TOKENS * shape.dim_qk).max(1));
    let q = planes.flat_map(|plane| plane.repeat(shape.keys / STREAM_TOKENS)).collect();
    HostInputs { shape, q, ..inputs.clone() }
}

/// Dense attention over a cache that holds the keys and values of all tokens already: the baseline of
/// streams, without the time that writing the cache takes.
#[derive(Debug, Clone, Copy)]
pub struct DenseStream;

struct PreparedCache {
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Stream for DenseStream {
    fn name(&self) -> &'static str {
        "dense-stream"
    }

    fn whole(&self) -> &dyn Mechanism {
        &DenseAttention::F32
    }

    fn begin(&self, gpu: &Gpu, inputs: &HostInputs, config: &Config) -> Result<Box<dyn Prepared>> {
        let attention = Attention::new(gpu, config.clone())?;
        let [q, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        Ok(Box::new(PreparedCache { attention, q, k, v }))
    }

    fn flops(&self, shape: &AttentionShape) -> f64 {
        let pairs = shape.batch * shape.heads * shape.keys;
        2.0 * (pairs * (shape.dim_qk + shape.dim_v)) as f64
    }

    fn bytes(&self, shape: &AttentionShape) -> f64 {
        let keys = shape.batch * shape.heads_kv * shape.keys;
        4.0 * (keys * (shape.dim_qk + shape.dim_v)) as f64
    }
}

impl Prepared for PreparedCache {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let before = self.k.shape()[2] - STREAM_TOKENS;
        let token = |t: usize| {
            let q = self.q.narrow(2, t, 1)?;
            let [k, v] = [&self.k, &self.v].map(|x| x.narrow(2, 0, before + t + 1));
            Ok(("out", self.attention.forward(Inputs::new(&q, &k?, &v?))?.out))
        };
        (0..STREAM_TOKENS).map(token).collect()
    }

    fn variant(&self) -> String {
        "a cache of keys and values".into()
    }
}
