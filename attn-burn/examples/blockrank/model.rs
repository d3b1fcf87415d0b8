//! The projections that learn, and what prompts show them.

use attn_burn::attn_blockrank::{self, Config};
use attn_burn::ops::{BlockRank, Segments};
use attn_model::ModelConfig;
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::plain;

pub type Failure = Box<dyn std::error::Error>;

/// What a prompt leaves behind when everything below the layer is frozen, on the host.
#[derive(Clone)]
pub struct Frozen {
    /// Normed inputs of the layer `[rows, hidden]`: tokens of all documents, then the signal tokens.
    pub rows: Vec<f32>,
    /// Of each row.
    pub positions: Vec<u32>,
    /// Tokens of each document.
    pub documents: Vec<usize>,
    /// The document that answers.
    pub positive: usize,
}

impl Frozen {
    fn tokens(&self) -> usize {
        self.documents.iter().sum()
    }
}

/// Heads of a layer and how they rotate.
#[derive(Debug, Clone)]
pub struct Heads {
    pub hidden: usize,
    heads: usize,
    heads_kv: usize,
    dim: usize,
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
}

impl Heads {
    pub fn of(config: &ModelConfig, layer: usize) -> Heads {
        Heads {
            hidden: config.hidden,
            heads: config.heads,
            heads_kv: config.heads_kv,
            dim: config.head_dim,
            frequencies: config.layers[layer].rope.frequencies(config.head_dim),
        }
    }
}

/// Tokens of several prompts that are projected together, filled up with zeros to the longest.
struct Rows {
    /// `[batch, tokens, hidden]`.
    x: Tensor<3>,
    /// Cosines and sines `[batch, 1, tokens, dim]`; element `i` of the first half of a head turns with element
    /// `i` of the second.
    turns: [Tensor<4>; 2],
}

impl Rows {
    fn new(parts: &[(&Frozen, std::ops::Range<usize>)], heads: &Heads, device: &Device) -> Rows {
        let tokens = parts.iter().map(|(_, part)| part.len()).max().unwrap_or(0);
        let shape = [parts.len(), tokens, heads.hidden];
        let mut x = vec![0.0; shape.iter().product()];
        let mut positions = vec![0; parts.len() * tokens];
        for (prompt, (frozen, part)) in parts.iter().enumerate() {
            let start = prompt * tokens;
            let own = &frozen.rows[part.start * heads.hidden..part.end * heads.hidden];
            x[start * heads.hidden..][..own.len()].copy_from_slice(own);
            positions[start..][..part.len()].copy_from_slice(&frozen.positions[part.clone()]);
        }
        let turns = [f64::cos as fn(f64) -> f64, f64::sin].map(|f| {
            let row = |position: &u32| {
                let angle = |turn: &f64| f(f64::from(*position) * turn) as f32;
                let half: Vec<f32> = heads.frequencies.iter().map(angle).collect();
                [&half[..], &half].concat()
            };
            let table: Vec<f32> = positions.iter().flat_map(row).collect();
            let shape = [parts.len(), 1, tokens, heads.dim];
            Tensor::from_data(TensorData::new(table, shape), device)
        });
        Rows { x: Tensor::from_data(TensorData::new(x, shape), device), turns }
    }
}

/// Some prompts on the device.
pub struct Shown {
    documents: Rows,
    signals: Rows,
    segments: Segments,
    positives: Vec<usize>,
}

impl Shown {
    pub fn new(prompts: &[&Frozen], heads: &Heads, device: &Device) -> Result<Shown, Failure> {
        let documents = prompts.iter().map(|prompt| (*prompt, 0..prompt.tokens()));
        let signals =
            prompts.iter().map(|prompt| (*prompt, prompt.tokens()..prompt.positions.len()));
        let rows = |parts: Vec<_>| Rows::new(&parts, heads, device);
        // Of instruction and query segment no token is here.
        let lengths = prompts.iter().map(|prompt| [&[0], &prompt.documents[..], &[0]].concat());
        let segments = attn_blockrank::Segments::packed(&lengths.collect::<Vec<_>>())?;
        Ok(Shown {
            documents: rows(documents.collect()),
            signals: rows(signals.collect()),
            segments: segments.into(),
            positives: prompts.iter().map(|prompt| prompt.positive).collect(),
        })
    }

    /// The place of each prompt's positive document by these scores `[batch, documents]`, 1 for the first.
    pub fn places(&self, scores: Tensor<2>) -> Result<Vec<usize>, Failure> {
        let [_, documents] = scores.dims();
        let scores = scores.into_data().try_to_vec::<f32>()?;
        let place = |(own, positive): (&[f32], &usize)| {
            let best = own[*positive];
            let before = |(other, score): (usize, &f32)| {
                *score > best || (*score == best && other < *positive)
            };
            1 + own.iter().enumerate().filter(|entry| before(*entry)).count()
        };
        Ok(scores.chunks(documents).zip(&self.positives).map(place).collect())
    }
}

#[derive(Module, Debug)]
pub struct Projections {
    query: Linear,
    key: Linear,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    method: BlockRank,
}

impl Projections {
    /// From weights `[out, in]`, as models store them.
    pub fn new(
        heads: Heads,
        query: &[f32],
        key: &[f32],
        config: Config,
        device: &Device,
    ) -> Result<Projections, Failure> {
        let map = |weight: &[f32], count: usize| {
            let (from, to) = (heads.hidden, count * heads.dim);
            let mut map = LinearConfig::new(from, to).with_bias(false).init(device);
            let weight = TensorData::new(weight.to_vec(), [to, from]);
            let weight = Tensor::<2>::from_data(weight, device);
            // Burn has rows for what goes in.
            map.weight = Param::from_tensor(weight.transpose());
            map
        };
        let (query, key) = (map(query, heads.heads), map(key, heads.heads_kv));
        Ok(Projections { query, key, heads, method: BlockRank::new(config)? })
    }

    /// Weights `[out, in]` of queries and keys.
    pub fn weights(&self) -> Result<[Vec<f32>; 2], Failure> {
        let numbers = |map: &Linear| map.weight.val().transpose().into_data().try_to_vec::<f32>();
        Ok([numbers(&self.query)?, numbers(&self.key)?])
    }

    /// Scores of documents `[batch, documents]`, by kernels or by their definition.
    pub fn scores(&self, shown: &Shown, by_definition: bool) -> Result<Tensor<2>, Failure> {
        let q = self.turned(&self.query, &shown.signals, self.heads.heads);
        let k = self.turned(&self.key, &shown.documents, self.heads.heads_kv);
        if !by_definition {
            return Ok(self.method.scores(q, k, &shown.segments)?);
        }
        let host = shown.segments.host();
        let lengths = |prompt: usize| host.documents(prompt).iter().map(|own| own.len).collect();
        let lengths: Vec<Vec<usize>> = (0..host.batch()).map(lengths).collect();
        Ok(plain::scores(q, k, &lengths.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    pub fn loss(&self, shown: &Shown, by_definition: bool) -> Result<Tensor<1>, Failure> {
        let scores = self.scores(shown, by_definition)?;
        if by_definition {
            return Ok(plain::loss(scores, &shown.positives, self.method.config().tau));
        }
        let positives: Vec<_> = shown.positives.iter().map(|own| vec![*own]).collect();
        Ok(self.method.loss(scores, &positives, &shown.segments)?)
    }

    /// Projected and rotated, `[batch, heads, tokens, dim]`.
    fn turned(&self, map: &Linear, rows: &Rows, heads: usize) -> Tensor<4> {
        let dim = self.heads.dim;
        let [batch, tokens, _] = rows.x.dims();
        let x = map.forward(rows.x.clone()).reshape([batch, tokens, heads, dim]).swap_dims(1, 2);
        let half = |start| x.clone().narrow(3, start, dim / 2);
        let turned = Tensor::cat(vec![-half(dim / 2), half(0)], 3);
        let [cos, sin] = rows.turns.clone();
        x * cos + turned * sin
    }
}
