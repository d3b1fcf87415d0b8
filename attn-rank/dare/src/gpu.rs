//! The model on a device. The equations are those of [`crate::reference`].
//!
//! ```text
//! dare_pack          ids of behaviours side by side, marks of those that do not count
//! dare_rows          q and v of the candidates
//! dare_search        scores of a tile of behaviours, and the K largest of them
//! dare_merge         the K largest of the tiles', in rounds
//! dare_kept          ids of what was kept
//! softmax            weights
//! dare_pool          h = sum w e
//! dare_features      v, h, v * h
//! ```
//!
//! and back:
//!
//! ```text
//! dare_features_back dh and dv
//! dare_dots          dw = dh . e
//! row_dot            sum w dw
//! dare_slopes        ds
//! dare_pool          dq = sum ds k
//! scatter_rows       w dh, dv, ds q and dq added into the tables' rows
//! ```
//!
//! Keys and values are gathered where they are used and never stored; nothing is read back.

mod batch;
mod head;
mod kernels;
mod search;
mod serving;
mod tables;
mod train;

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops, softmax};

pub use self::batch::Batch;
use self::batch::Packed;
pub use self::head::{
    Head, HeadCotangents, HeadGrads, HeadInputs, HeadOutput, HeadSaved, HeadTargets, LinearGrads,
    LinearTensors, Parameters, Statistics,
};
#[cfg(feature = "bench")]
pub use self::kernels::kernels;
use self::kernels::{FEATURES, POOL, ROWS, Run};
pub use self::serving::{History, Recalled};
use self::tables::Stage;
pub use self::tables::{Embeddings, Tables};
pub use self::train::{Cotangents, EmbeddingTargets, Grads, Saved, Targets};

use crate::config::{Config, Search};

/// Score of what does not count.
const MASKED: f32 = -3e38;

/// Tables, candidates and their histories.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Of both stages.
    pub tables: &'a Tables,
    /// A candidate a request, with the history in which it is searched.
    pub batch: &'a Batch,
}

impl<'a> Inputs<'a> {
    /// Both.
    pub fn new(tables: &'a Tables, batch: &'a Batch) -> Self {
        Inputs { tables, batch }
    }
}

/// What [`Dare::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// Of the head: v, h and, if target-aware, v * h, f32 `[B, 3 D]` or `[B, 2 D]`.
    pub features: Tensor,
    /// Which behaviours were kept, i32 `[B, K]`, the highest score first; -1 in unused places.
    pub index: Tensor,
    /// Their scores, f32 `[B, K]`, of at most -1e30 in unused places.
    pub scores: Tensor,
    /// Their weights, f32 `[B, K]`, 0 in unused places.
    pub weights: Tensor,
    /// What the auxiliary head needs, if [`Config::auxiliary`].
    pub auxiliary: Option<Auxiliary>,
}

/// The history pooled over all behaviours.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Auxiliary {
    /// Of the auxiliary head, as [`Output::features`].
    pub features: Tensor,
    /// Scores of all behaviours, f32 `[B, N]`, of at most -1e30 where they do not count.
    pub scores: Tensor,
    /// Their weights, f32 `[B, N]`.
    pub weights: Tensor,
}

impl Output {
    /// The pooled history h, f32 `[B, D]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn pooled(&self, config: &Config) -> Result<Tensor> {
        pooled(&self.features, config)
    }
}

impl Auxiliary {
    /// The history pooled over all behaviours, f32 `[B, D]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn pooled(&self, config: &Config) -> Result<Tensor> {
        pooled(&self.features, config)
    }
}

fn pooled(features: &Tensor, config: &Config) -> Result<Tensor> {
    let width = config.representation.sum();
    features.narrow(1, width, width)
}

/// Search and pooling with a table for each.
#[derive(Debug, Clone)]
pub struct Dare {
    gpu: Gpu,
    config: Config,
}

/// A call that was checked.
struct Call {
    attention: Stage,
    representation: Stage,
    /// Rows of the three tables.
    rows: [usize; 3],
    requests: usize,
    length: usize,
}

/// Behaviours of which a head sees the weighted mean.
#[derive(Debug, Clone)]
struct Path {
    /// u32 `[B, M, 4]`.
    ids: Tensor,
    /// f32 `[B, M]`.
    weights: Tensor,
    /// `[B, 4 chunks]`.
    h: Tensor,
}

impl Dare {
    /// The model with these parameters.
    ///
    /// # Errors
    /// [`Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Dare> {
        config.validate()?;
        Ok(Dare { gpu: gpu.clone(), config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Searches and pools.
    ///
    /// An id that a table does not have is not seen on the host where ids come on the device: a behaviour
    /// with one does not count, and a candidate's features are NaN ([`Batch::upload`] refuses both).
    ///
    /// # Errors
    /// [`Error`] for shapes, types or devices that do not fit; [`attn_wgpu::Error::Limit`] for a table above
    /// the largest binding; errors of the device.
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        Ok(self.forward_saved(inputs)?.0)
    }

    /// [`Dare::forward`], and what [`Dare::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Dare::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        let new = || {
            let shape = [inputs.batch.requests(), self.config.features()];
            Tensor::uninit(&self.gpu, &shape, DType::F32)
        };
        let (features, auxiliary) = (new()?, self.config.auxiliary.then(new).transpose()?);
        self.forward_saved_into(inputs, &features, auxiliary.as_ref())
    }

    /// [`Dare::forward_saved`] with the features f32 `[B, features]` of both heads in a caller's tensors,
    /// which must not overlap anything else.
    ///
    /// # Errors
    /// As [`Dare::forward`], and [`Error`] for targets of other shapes, or an auxiliary one where there
    /// is none or the other way round.
    pub fn forward_saved_into(
        &self,
        inputs: Inputs<'_>,
        features: &Tensor,
        auxiliary: Option<&Tensor>,
    ) -> Result<(Output, Saved)> {
        let call = self.call(inputs)?;
        let shape = [call.requests, self.config.features()];
        ops::check_target("features", features, &self.gpu, &shape)?;
        if auxiliary.is_some() != self.config.auxiliary {
            let got = if auxiliary.is_some() { "one" } else { "none" };
            let expected = if self.config.auxiliary { "a tensor" } else { "none" };
            return Err(Error::config("auxiliary", expected, got).into());
        }
        if let Some(auxiliary) = auxiliary {
            ops::check_target("auxiliary", auxiliary, &self.gpu, &shape)?;
        }
        let Packed { candidates, history } = self.pack(inputs.batch, call.rows)?;
        let q = self.rows(&call.attention, &candidates)?;
        let v = self.rows(&call.representation, &candidates)?;
        let found = self.search(&call, &history, &q)?;
        let kept = self.kept(&call, &history, &found)?;
        let (numbers, scores) = (found.numbers, kept.scores);
        let weights = softmax::softmax(&scores)?;
        let main = self.pool(&call.representation, kept.ids, weights)?;
        self.features(&call.representation, &v, &main.h, features)?;
        let mut saved = Saved {
            tables: inputs.tables.clone(),
            candidates,
            q,
            v,
            main,
            auxiliary: None,
            requests: call.requests,
        };
        let auxiliary = match (auxiliary, found.scores) {
            (Some(features), Some(scores)) => {
                let weights = softmax::softmax(&scores)?;
                let path = self.pool(&call.representation, history, weights)?;
                self.features(&call.representation, &saved.v, &path.h, features)?;
                let weights = path.weights.clone();
                saved.auxiliary = Some(path);
                Some(Auxiliary { features: features.clone(), scores, weights })
            }
            _ => None,
        };
        let output = Output {
            features: features.clone(),
            index: numbers,
            scores,
            weights: saved.main.weights.clone(),
            auxiliary,
        };
        Ok((output, saved))
    }

    fn call(&self, inputs: Inputs<'_>) -> Result<Call> {
        let rows = inputs.tables.check(&self.gpu, &self.config)?;
        let (requests, length) = inputs.batch.check(&self.gpu)?;
        let slots = rows[2];
        if inputs.batch.history_time.is_none() && length >= slots {
            let expected = format!("at most {} behaviours, as there are {slots} slots", slots - 1);
            return Err(Error::shape("history_item", expected, &[requests, length]).into());
        }
        Ok(Call {
            attention: Stage::new(&inputs.tables.attention, self.config.attention)?,
            representation: Stage::new(&inputs.tables.representation, self.config.representation)?,
            rows,
            requests,
            length,
        })
    }

    /// Embeddings of candidates u32 `[rows, 4]`, f32 `[rows, 4 chunks]`.
    fn rows(&self, stage: &Stage, candidates: &Tensor) -> Result<Tensor> {
        let count = candidates.shape()[0];
        let out = Tensor::uninit(&self.gpu, &[count, 4 * stage.width()], DType::F32)?;
        let [item, category, time] = &stage.tables;
        let mut params = stage.params().to_vec();
        params.push(f32::NAN.to_bits());
        let run = Run {
            source: &ROWS,
            flags: &[],
            tensors: &[candidates, item, category, time, &out],
            count: count * stage.width(),
            params: &params,
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(out)
    }

    /// `sum w row(ids)`, f32 `[rows, 4 chunks]`.
    fn sum(&self, stage: &Stage, ids: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let &[rows, length] = weights.shape() else {
            return Err(Error::shape("weights", "[rows, length]", weights.shape()).into());
        };
        if length == 0 {
            return Tensor::zeros(&self.gpu, &[rows, 4 * stage.width()], DType::F32);
        }
        let out = Tensor::uninit(&self.gpu, &[rows, 4 * stage.width()], DType::F32)?;
        let [item, category, time] = &stage.tables;
        let mut params = vec![length as u32];
        params.extend(stage.params());
        let run = Run {
            source: &POOL,
            flags: &[],
            tensors: &[weights, ids, item, category, time, &out],
            count: rows * stage.width(),
            params: &params,
            steps: length,
        };
        run.record(&self.gpu)?;
        Ok(out)
    }

    fn pool(&self, stage: &Stage, ids: Tensor, weights: Tensor) -> Result<Path> {
        let h = self.sum(stage, &ids, &weights)?;
        Ok(Path { ids, weights, h })
    }

    /// v, h, v * h into a tensor that was checked.
    fn features(&self, stage: &Stage, v: &Tensor, h: &Tensor, out: &Tensor) -> Result<()> {
        let widths = stage.widths;
        ops::write_rows(out, &[v, h], |out| {
            let run = Run {
                source: &FEATURES,
                flags: &[("PRODUCT", self.config.target_aware)],
                tensors: &[v, h, out],
                count: v.shape()[0] * widths.sum(),
                params: &[
                    widths.item as u32,
                    widths.category as u32,
                    widths.time as u32,
                    v.shape()[1] as u32,
                    out.shape()[1] as u32,
                ],
                steps: 1,
            };
            run.record(&self.gpu)
        })?;
        Ok(())
    }

    fn by_category(&self) -> bool {
        self.config.search == Search::Category
    }
}
