//! Window attention with sink tokens: the StreamingLLM baseline.

use attn_core::Mask;
use attn_wgpu::Tensor;
use attn_wgpu::attention::{Attention, Inputs, merge};
use serde::{Deserialize, Serialize};

use super::{AttentionPolicy, Layer, ModelShape};
use crate::Result;

/// Every query sees the first `sinks` tokens and the last `window` ones, itself included (Xiao et al.,
/// Efficient Streaming Language Models with Attention Sinks, 2023): what most papers on long contexts
/// compare with.
///
/// While no token is out of sight, it equals the model's own attention. Layers whose own window is not
/// larger are left to the model. Work a token is bounded; memory is not, as all keys and values stay in
/// the cache, so that sessions can be truncated to any length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SinkWindow {
    /// Tokens at the beginning that all queries see.
    pub sinks: usize,
    /// Tokens up to the query, itself included, that it sees.
    pub window: usize,
    /// Where the sinks are seen.
    pub positions: SinkPositions,
}

/// At which distance a query sees the sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkPositions {
    /// As if the tokens out of sight were not there: the paper's rule, by which no distance is larger
    /// than `sinks + window - 1`, however long the text.
    #[default]
    Cache,
    /// At their distance in the text.
    Text,
}

impl Default for SinkWindow {
    /// 4 sinks and 1,020 tokens: the paper's cache of 1,024.
    fn default() -> Self {
        SinkWindow { sinks: 4, window: 1020, positions: SinkPositions::Cache }
    }
}

impl SinkWindow {
    /// By the paper's positions.
    pub fn new(sinks: usize, window: usize) -> Self {
        SinkWindow { sinks, window, ..SinkWindow::default() }
    }

    /// With sinks at these positions.
    pub fn with_positions(self, positions: SinkPositions) -> Self {
        SinkWindow { positions, ..self }
    }

    /// Sinks that are out of the window, at the distance that they have in the cache.
    fn far_sinks(&self, layer: &Layer<'_>) -> Result<(Tensor, Tensor)> {
        let (tokens, queries) = (layer.positions().len(), layer.query_positions());
        let first = tokens - queries.len();
        let unseen = |index: usize| (index + 1).saturating_sub(self.sinks + self.window);
        let near: Vec<u32> = (first..)
            .zip(queries)
            .map(|(index, position)| position.saturating_sub(unseen(index) as u32))
            .collect();
        let q = layer.rotate(layer.q(), &near)?;
        let k = layer.keys()?.narrow(2, 0, self.sinks)?;
        let v = layer.values()?.narrow(2, 0, self.sinks)?;
        // Key t is seen by the query with index i iff t <= i - window; masks count queries as if they
        // were the last of the keys.
        let mask = match first + 1 >= self.sinks + self.window {
            true => Mask::Full,
            false => Mask::Window { left: tokens, right: tokens - self.sinks - self.window },
        };
        let output = attention(layer, mask)?.forward(Inputs::new(&q, &k, &v))?;
        Ok((output.out, output.lse))
    }
}

impl AttentionPolicy for SinkWindow {
    fn begin(&mut self, _: &ModelShape) -> Result<()> {
        if self.window > 0 {
            return Ok(());
        }
        Err(attn_core::Error::config("window", "at least 1", 0).into())
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let left = self.window - 1;
        let (tokens, queries) = (layer.positions().len(), layer.query_positions().len());
        let own = match layer.mask() {
            Mask::Window { left, .. } => *left,
            _ => usize::MAX,
        };
        let all_are_seen = tokens <= self.sinks.saturating_add(self.window);
        if own <= left || all_are_seen {
            return layer.dense();
        }
        let q = layer.rotated_q()?;
        let (keys, values) = (layer.keys()?, layer.values()?);
        if self.positions == SinkPositions::Text {
            let out = layer.output()?;
            let mask = Mask::SinkWindow { left, sinks: self.sinks };
            let inputs = Inputs::new(&q, &keys, &values);
            attention(layer, mask)?.forward_into(inputs, &out, None)?;
            return Ok(out);
        }
        // Keys in front of the first query's window are seen by none.
        let start = (tokens - queries).saturating_sub(left);
        let keys = keys.narrow(2, start, tokens - start)?;
        let values = values.narrow(2, start, tokens - start)?;
        let near = attention(layer, Mask::Window { left, right: 0 })?;
        let near = near.forward(Inputs::new(&q, &keys, &values))?;
        if self.sinks == 0 {
            return Ok(near.out);
        }
        let (out, lse) = self.far_sinks(layer)?;
        Ok(merge(&[(&near.out, &near.lse), (&out, &lse)])?.out)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

/// The model's attention under another mask.
fn attention(layer: &Layer<'_>, mask: Mask) -> Result<Attention> {
    let config = layer.attention().config().clone().with_mask(mask);
    Ok(Attention::new(layer.gpu(), config)?)
}
