//! Search in histories and what is pooled of them.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_dare::{
    self as dare, Batch, Config, Cotangents, EmbeddingTargets, Inputs, Saved, Targets, Widths,
};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use burn::tensor::Int;

use super::{OnGpu, words};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// The search and the pooling of DARE, with embedding tables for each, see [`attn_dare`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dare {
    config: Arc<Config>,
    made: Arc<OnGpu<dare::Dare>>,
}

/// Embedding tables of one stage. Row 0 of items and categories is padding.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[items, width]`.
    pub item: burn::tensor::Tensor<2>,
    /// `[categories, width]`.
    pub category: burn::tensor::Tensor<2>,
    /// `[slots, width]`, at least one slot more than a history is long.
    pub time: burn::tensor::Tensor<2>,
}

/// A candidate and a history for each of B requests. Ids are not compared with the tables: a behaviour that
/// they lack does not count, and the features of such a candidate are NaN.
#[derive(Debug, Clone)]
pub struct Requests {
    /// Candidates' items `[B]`.
    pub item: burn::tensor::Tensor<1, Int>,
    /// Candidates' categories `[B]`.
    pub category: burn::tensor::Tensor<1, Int>,
    /// Items of the histories `[B, N]`, the oldest first; 0 is padding.
    pub history_item: burn::tensor::Tensor<2, Int>,
    /// Categories of the histories `[B, N]`.
    pub history_category: burn::tensor::Tensor<2, Int>,
    /// Time slots of the candidates `[B]` and of the histories `[B, N]`. Where there are none, candidates have
    /// slot 0, and behaviours `N` for the first place to 1 for the last.
    pub times: Option<(burn::tensor::Tensor<1, Int>, burn::tensor::Tensor<2, Int>)>,
    /// Which behaviours count `[B, N]`: not 0. Where there is none, those whose item is not 0.
    pub mask: Option<burn::tensor::Tensor<2, Int>>,
}

/// What the heads read, and what was kept.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Features {
    /// Candidate, pooled history and their product, `[B, 3 D]`; see [`Config::features`].
    pub main: burn::tensor::Tensor<2>,
    /// The same of all behaviours, where [`Config::auxiliary`] asks for it.
    pub auxiliary: Option<burn::tensor::Tensor<2>>,
    /// Weights of the kept behaviours `[B, K]`, 0 in unused places. No gradient.
    pub weights: burn::tensor::Tensor<2>,
    /// Their places in the history `[B, K]`, the highest score first; -1 in unused places.
    pub index: burn::tensor::Tensor<2, Int>,
}

impl Requests {
    /// Of these candidates `[B]` and histories `[B, N]`, padded with items of 0.
    pub fn new(
        item: burn::tensor::Tensor<1, Int>,
        category: burn::tensor::Tensor<1, Int>,
        history_item: burn::tensor::Tensor<2, Int>,
        history_category: burn::tensor::Tensor<2, Int>,
    ) -> Self {
        Requests { item, category, history_item, history_category, times: None, mask: None }
    }
}

impl Dare {
    /// The model with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Dare { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Searches with the tables `attention` and pools with `representation`; the same twice for tied tables,
    /// whose gradient is the sum. What is kept is constant for the gradients. Tables are f32.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        attention: Embeddings,
        representation: Embeddings,
        requests: Requests,
    ) -> Result<Features> {
        let Requests { item, category, history_item, history_category, times, mask } = requests;
        let op = Searched { method: self.clone(), times: times.is_some(), mask: mask.is_some() };
        let mut inputs = apply::Inputs::new();
        for Embeddings { item, category, time } in [attention, representation] {
            inputs = inputs.float(item).float(category).float(time);
        }
        let mut inputs = inputs.int(item).int(category).int(history_item).int(history_category);
        if let Some((time, history_time)) = times {
            inputs = inputs.int(time).int(history_time);
        }
        let mut outputs = apply(op, inputs.maybe_int(mask))?;
        Ok(Features {
            main: outputs.float()?,
            auxiliary: self.config.auxiliary.then(|| outputs.float()).transpose()?,
            weights: outputs.float()?,
            index: outputs.int()?,
        })
    }

    fn on(&self, gpu: &Gpu) -> Result<dare::Dare> {
        self.made.get(gpu, || dare::Dare::new(gpu, (*self.config).clone()))
    }
}

/// Inputs are the tables that search, those that are pooled, ids of candidates and histories, perhaps time
/// slots and a mask.
#[derive(Debug)]
struct Searched {
    method: Dare,
    times: bool,
    mask: bool,
}

/// Tables of both stages.
const TABLES: usize = 6;
const NAMES: [&str; TABLES] =
    ["att_item", "att_cat", "att_time", "rep_item", "rep_cat", "rep_time"];

fn tables(inputs: &[Tensor]) -> dare::Tables {
    let stage = |at: usize| {
        let [item, category, time] = [0, 1, 2].map(|table| inputs[at + table].clone());
        dare::Embeddings::new(item, category, time)
    };
    dare::Tables::new(stage(0), stage(3))
}

impl Searched {
    fn batch(&self, inputs: &[Tensor]) -> Result<Batch> {
        let mut ids = inputs[TABLES..].iter().map(words);
        let mut next = || ids.next().unwrap_or_else(|| Err(missing()));
        let mut batch = Batch::new(next()?, next()?, next()?, next()?);
        if self.times {
            batch = batch.with_times(next()?, next()?);
        }
        if self.mask {
            batch = batch.with_mask(next()?);
        }
        Ok(batch)
    }
}

fn missing() -> attn_wgpu::Error {
    CoreError::config("inputs", "ids of candidates and histories", "fewer").into()
}

impl Operation for Searched {
    type Saved = Saved;

    fn name(&self) -> &'static str {
        "dare"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let config = self.method.config();
        let Widths { item, category, time, .. } = config.attention;
        let Widths { item: rep_item, category: rep_category, time: rep_time, .. } =
            config.representation;
        let widths = [item, category, time, rep_item, rep_category, rep_time];
        let (tables, ids) = inputs.split_at(TABLES);
        for (at, (table, width)) in tables.iter().zip(widths).enumerate() {
            // Both stages have rows for the same ids.
            let rows = tables[at % 3].shape.first().copied().unwrap_or(0);
            if table.shape != [rows, width] || rows == 0 {
                let expected = format!("[{}, {width}]", rows.max(1));
                return Err(CoreError::shape(NAMES[at], expected, &table.shape).into());
            }
            if table.dtype != DType::F32 {
                let (expected, got) = ("f32".into(), table.dtype.name().into());
                return Err(CoreError::Dtype { arg: NAMES[at], expected, got }.into());
            }
        }
        let &[requests, length] = ids[2].shape.as_slice() else {
            return Err(CoreError::shape("history_item", "[B, N]", &ids[2].shape).into());
        };
        let (one, many) = (vec![requests], vec![requests, length]);
        let mut wanted = vec![
            ("item", &one),
            ("category", &one),
            ("history_item", &many),
            ("history_category", &many),
        ];
        match self.times {
            true => wanted.extend([("time", &one), ("history_time", &many)]),
            false if length >= tables[2].shape[0] => {
                let expected = format!("at most {} behaviours", tables[2].shape[0] - 1);
                return Err(CoreError::shape("history_item", expected, &ids[2].shape).into());
            }
            false => {}
        }
        wanted.push(("mask", &many));
        for ((arg, shape), given) in wanted.into_iter().zip(ids) {
            if given.shape != *shape {
                return Err(CoreError::shape(arg, format!("{shape:?}"), &given.shape).into());
            }
        }
        let features = Spec::new([requests, config.features()], DType::F32);
        let auxiliary = config.auxiliary.then(|| features.clone());
        let kept = |dtype| Spec::new([requests, config.keep], dtype);
        let floats = [features].into_iter().chain(auxiliary).chain([kept(DType::F32)]);
        Ok(floats.chain([kept(DType::I32)]).collect())
    }

    fn differentiable(&self) -> usize {
        if self.method.config.auxiliary { 2 } else { 1 }
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Saved> {
        let (tables, batch) = (tables(inputs), self.batch(inputs)?);
        let heads = self.differentiable();
        let auxiliary = outputs[..heads].get(1);
        let given = Inputs::new(&tables, &batch);
        let (output, saved) =
            self.method.on(gpu)?.forward_saved_into(given, &outputs[0], auxiliary)?;
        ops::copy(&output.weights, &outputs[heads])?;
        ops::copy(&output.index, &outputs[heads + 1])?;
        Ok(saved)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Saved>) -> Result<()> {
        let saved = pass.saved.clone().with_tables(&tables(pass.inputs));
        let cotangents =
            Cotangents { features: Some(&pass.cotangents[0]), auxiliary: pass.cotangents.get(1) };
        let stage = |at: usize| {
            let [item, category, time] = [0, 1, 2].map(|table| pass.gradient(at + table));
            EmbeddingTargets { item, category, time }
        };
        let targets = Targets { attention: stage(0), representation: stage(3) };
        self.method.on(gpu)?.backward_into(&saved, cotangents, targets)
    }
}
