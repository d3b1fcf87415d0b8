//! Where attention comes from.

use attn_core::dense;
use attn_wgpu::{Result, Tensor};

/// A model's attention over one sequence, layer by layer: of any vision-language model, or any other.
///
/// A layer is asked for when the flow gets there, from the last to the first, so that a source may compute or
/// load it then.
pub trait AttentionSource {
    /// Tokens of the sequence, N.
    fn tokens(&self) -> usize;

    /// Layers, L.
    fn layers(&self) -> usize;

    /// Attention of a layer, the first of which is 0.
    ///
    /// # Errors
    /// Whatever keeps the source from it.
    fn layer(&self, layer: usize) -> Result<LayerAttention>;

    /// Entries of each column that the mask leaves, `[N]`, for the [column factor](crate::column_factor). None:
    /// those of a causal mask.
    fn column_counts(&self) -> Option<Vec<usize>> {
        None
    }
}

impl<S: AttentionSource + ?Sized> AttentionSource for &S {
    fn tokens(&self) -> usize {
        (**self).tokens()
    }

    fn layers(&self) -> usize {
        (**self).layers()
    }

    fn layer(&self, layer: usize) -> Result<LayerAttention> {
        (**self).layer(layer)
    }

    fn column_counts(&self) -> Option<Vec<usize>> {
        (**self).column_counts()
    }
}

/// Attention of one layer.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and a model has few layers")]
pub enum LayerAttention {
    /// What probabilities are made of. They are never stored.
    QueriesKeys(QueriesKeys),
    /// The probabilities themselves, `[heads, N, N]`, f32.
    Maps(Tensor),
}

/// Queries and keys of one layer.
#[derive(Debug, Clone)]
pub struct QueriesKeys {
    /// Queries of all tokens, positions included, `[1, heads, N, D]`, f32, f16 or bf16.
    pub q: Tensor,
    /// Keys of all tokens, `[1, heads_kv, N, D]`, of the same type; `heads_kv` divides `heads`.
    pub k: Tensor,
    /// Mask, scale, soft-cap and modifier of the logits.
    pub attention: dense::Config,
    /// One more logit a head in the softmax's denominator, `[heads]`, f32.
    pub sinks: Option<Tensor>,
}

impl QueriesKeys {
    /// Without sinks.
    pub fn new(q: &Tensor, k: &Tensor, attention: dense::Config) -> Self {
        QueriesKeys { q: q.clone(), k: k.clone(), attention, sinks: None }
    }

    /// The same with sinks.
    pub fn with_sinks(self, sinks: &Tensor) -> Self {
        QueriesKeys { sinks: Some(sinks.clone()), ..self }
    }
}

/// Layers that are all at hand.
#[derive(Debug, Clone)]
pub struct Layers {
    tokens: usize,
    layers: Vec<LayerAttention>,
    counts: Option<Vec<usize>>,
}

impl Layers {
    /// These layers, the first first, of a causal model with `tokens` tokens.
    pub fn new(tokens: usize, layers: Vec<LayerAttention>) -> Self {
        Layers { tokens, layers, counts: None }
    }

    /// Stored probabilities `[layers, heads, N, N]`, f32.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for a tensor of another rank or of maps that are not square.
    pub fn maps(maps: &Tensor) -> Result<Self> {
        let &[layers, heads, rows, columns] = maps.shape() else {
            return Err(
                attn_core::Error::shape("maps", "[layers, heads, N, N]", maps.shape()).into()
            );
        };
        if rows != columns {
            let expected = "[layers, heads, N, N], as many rows as columns";
            return Err(attn_core::Error::shape("maps", expected, maps.shape()).into());
        }
        let layer = |number| {
            let layer =
                maps.narrow(0, number, 1)?.contiguous()?.reshape(&[heads, rows, columns])?;
            Ok(LayerAttention::Maps(layer))
        };
        Ok(Layers::new(rows, (0..layers).map(layer).collect::<Result<_>>()?))
    }

    /// The same with other counts of the entries that the mask leaves in each column.
    pub fn with_column_counts(self, counts: Vec<usize>) -> Self {
        Layers { counts: Some(counts), ..self }
    }
}

impl AttentionSource for Layers {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, layer: usize) -> Result<LayerAttention> {
        let found = self.layers.get(layer).cloned();
        let missing = || {
            let expected = format!("below {}", self.layers.len());
            attn_core::Error::config("layer", expected, layer).into()
        };
        found.ok_or_else(missing)
    }

    fn column_counts(&self) -> Option<Vec<usize>> {
        self.counts.clone()
    }
}
