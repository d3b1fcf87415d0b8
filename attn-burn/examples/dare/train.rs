//! A model, its training, and how it is judged.

use attn_burn::attn_dare::data::{Dataset, Sample, auc};
use attn_burn::attn_dare::{Config, Widths};
use attn_burn::nn::{Dare, DareConfig, DareTables};
use attn_burn::ops::{Embeddings, Requests};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fastrand::Rng;

use crate::plain;

pub type Failure = Box<dyn std::error::Error>;

const RATE: f64 = 1e-2;
/// Of Adam, whose default in burn is above the gradients of most embeddings.
const EPSILON: f32 = 1e-8;
const BATCH: usize = 512;
/// Width of each table that is pooled.
const WIDTH: usize = 16;
/// Behaviours that the search keeps.
const KEEP: usize = 10;
/// Factor of the squares of weights.
const DECAY: f64 = 1e-6;

#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Whether search and representation share their tables.
    pub tied: bool,
    /// Width of each table that searches.
    pub attention: usize,
}

impl Kind {
    /// Of all tables.
    pub fn bytes(self, set: &Dataset) -> usize {
        let width = WIDTH + if self.tied { 0 } else { self.attention };
        4 * width * set.rows().iter().sum::<usize>()
    }
}

/// The epoch that was best on validation events.
pub struct Best {
    pub epoch: usize,
    pub valid: f64,
    pub test: f64,
}

/// Training, and its losses so far.
struct Run<'a> {
    model: Dare,
    optimizer: ModuleOptimizer,
    set: &'a Dataset,
    device: &'a Device,
    random: Rng,
    losses: Vec<Tensor<1>>,
    /// Requests of which the definition would keep others.
    others: usize,
}

pub fn train(
    kind: Kind,
    set: &Dataset,
    device: &Device,
    seed: u64,
    epochs: usize,
) -> Result<Best, Failure> {
    let mut run = Run::new(kind, set, device, seed)?;
    let mut best: Option<(usize, f64, Dare)> = None;
    for epoch in 1..=epochs {
        run.epoch(usize::MAX, false)?;
        let model = run.model.valid();
        let valid = run.area(&model, &set.valid)?;
        if best.as_ref().is_none_or(|(_, most, _)| valid > *most) {
            best = Some((epoch, valid, model));
        }
    }
    let (epoch, valid, model) = best.ok_or("no epoch")?;
    Ok(Best { epoch, valid, test: run.area(&model, &set.test)? })
}

/// What the losses of the first steps by kernels are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Kernels,
    /// From a table that is a rounding away: what training makes of one.
    Nudged,
    Definition,
}

/// Largest relative differences of the first losses by kernels from others.
pub struct Apart {
    /// By definition, which takes what the kernels keep.
    pub defined: f64,
    /// By kernels, from a table that is a rounding away.
    pub nudged: f64,
    /// Requests of which the definition would keep others, by scores that rounding decides.
    pub others: usize,
}

pub fn apart(
    kind: Kind,
    set: &Dataset,
    device: &Device,
    seed: u64,
    steps: usize,
) -> Result<Apart, Failure> {
    let run = |other: Other| -> Result<(Vec<f32>, usize), Failure> {
        let mut run = Run::new(kind, set, device, seed)?;
        if other == Other::Nudged {
            let items = run.model.representation.item;
            let nudge = |items: Tensor<2>| (items * (1.0 + f32::EPSILON)).detach().require_grad();
            run.model.representation.item = items.map(nudge);
        }
        run.epoch(steps, other == Other::Definition)?;
        Ok((Tensor::cat(run.losses, 0).into_data().try_to_vec::<f32>()?, run.others))
    };
    let (own, _) = run(Other::Kernels)?;
    let most = |other: &[f32]| {
        let apart = own.iter().zip(other).map(|(own, other)| (own - other).abs() / other);
        apart.fold(0.0f32, f32::max).into()
    };
    let ((nudged, _), (defined, others)) = (run(Other::Nudged)?, run(Other::Definition)?);
    Ok(Apart { defined: most(&defined), nudged: most(&nudged), others })
}

impl<'a> Run<'a> {
    fn new(kind: Kind, set: &'a Dataset, device: &'a Device, seed: u64) -> Result<Self, Failure> {
        device.seed(seed);
        let widths = (Widths::each(kind.attention), Widths::each(WIDTH));
        let config = Config::new().with_widths(widths.0, widths.1).with_keep(KEEP);
        let extents = DareConfig::new(set.items, set.categories, set.length).with_tied(kind.tied);
        let model = extents.init(config, device)?;
        // Burn draws weights when they are first looked at: for kernels and definition in one order.
        model.visit(&mut Look);
        let random = Rng::with_seed(seed);
        let optimizer = AdamConfig::new().with_epsilon(EPSILON).init();
        Ok(Run { model, optimizer, set, device, random, losses: Vec::new(), others: 0 })
    }

    fn epoch(&mut self, steps: usize, by_definition: bool) -> Result<(), Failure> {
        let samples = self.set.shuffled(&mut self.random);
        for samples in samples.chunks(BATCH).take(steps) {
            let (requests, labels) = batch(self.set, samples, self.device);
            let loss = match by_definition {
                true => {
                    let (loss, others) = defined(&self.model, &requests, labels)?;
                    self.others += others;
                    loss
                }
                false => self.model.loss(requests, labels, DECAY)?,
            };
            self.losses.push(loss.clone().detach());
            let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
            self.model = self.optimizer.step(RATE, self.model.clone(), gradients);
        }
        Ok(())
    }

    /// Area under the curve.
    fn area(&self, model: &Dare, samples: &[Sample]) -> Result<f64, Failure> {
        let device = self.device.clone().inner();
        let mut scores = Vec::new();
        for samples in samples.chunks(2 * BATCH) {
            let (requests, _) = batch(self.set, samples, &device);
            let clicks = model.forward(requests)?.main.narrow(1, 0, 1);
            scores.extend(clicks.into_data().try_to_vec::<f32>()?);
        }
        let clicked: Vec<bool> = samples.iter().map(|sample| sample.clicked).collect();
        Ok(auc(&scores, &clicked)?.ok_or("no clicks, or nothing else")?)
    }
}

struct Look;

impl ModuleVisitor for Look {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// Requests, and labels `[samples, 2]`.
fn batch(set: &Dataset, samples: &[Sample], device: &Device) -> (Requests, Tensor<2>) {
    let (batch, label) = set.batch(samples);
    let [count, length] = [samples.len(), set.length];
    let ids = |ids: Vec<i32>| {
        let count = ids.len();
        Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), device)
    };
    let one = |of: &ndarray::Array1<u32>| ids(of.iter().map(|id| *id as i32).collect());
    let many = |of: &ndarray::Array2<u32>| {
        ids(of.iter().map(|id| *id as i32).collect()).reshape([count, length])
    };
    let requests = Requests::new(
        one(&batch.item),
        one(&batch.category),
        many(&batch.history_item),
        many(&batch.history_category),
    );
    let labels =
        label.iter().flat_map(|class| if *class == 0 { [1.0f32, 0.0] } else { [0.0, 1.0] });
    let labels = TensorData::new(labels.collect(), [count, 2]);
    (requests, Tensor::from_data(labels, device))
}

/// The loss with features by their definition, and of how many requests that would keep others.
fn defined(
    model: &Dare,
    requests: &Requests,
    labels: Tensor<2>,
) -> Result<(Tensor<1>, usize), Failure> {
    let stage = |tables: &DareTables| Embeddings {
        item: tables.item.val(),
        category: tables.category.val(),
        time: tables.time.val(),
    };
    let representation = stage(&model.representation);
    let attention = model.attention.as_ref().map_or_else(|| representation.clone(), stage);
    let config = model.search().config();
    let index = model.features(requests.clone())?.index;
    let ([main, all], others) =
        plain::features(&attention, &representation, requests, index, config);
    let [count, _] = labels.dims();
    let of = |p: Tensor<2>| (p.log() * labels.clone()).sum() / -(count as f64);
    let squares = model.main.squares() + model.auxiliary.squares();
    let loss = of(model.main.forward(main)) + of(model.auxiliary.forward(all)) + squares * DECAY;
    Ok((loss, others.try_into_scalar::<i32>()?.try_into()?))
}
