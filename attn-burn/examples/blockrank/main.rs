//! A language model learns to rank at one layer: of SmolLM2, frozen, only the projections of queries and keys of
//! layer 12 are trained, by the contrastive loss on how much of the signal tokens' attention each document gets.
//! Prompts are made of Wikipedia's paragraphs; those of articles held back judge. Prints figures, saves the
//! projections, and lets the ranker of `attn-blockrank` order the prompts held back with them.
//!
//! `cargo xtask model fetch smollm2` and `cargo xtask data fetch wiki` fetch what this needs.
//!
//! `cargo run -p attn-burn --example attn-burn-blockrank -- [prompts] [held back] [epochs] [file]`

mod frozen;
mod model;
mod plain;
mod prompts;
mod ranked;
mod wiki;

use std::time::Instant;

use attn_burn::attn_blockrank::Config;
use attn_burn::attn_blockrank::projections::Projections as Tuned;
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use fastrand::Rng;
use ndarray::Array2;

use model::{Failure, Frozen, Heads, Projections, Shown};

/// Layer whose projections learn, from 0.
pub const LAYER: usize = 12;
const RATE: f64 = 3e-4;
/// Of Adam, whose default in burn is above many a gradient.
const EPSILON: f32 = 1e-8;
const BATCH: usize = 8;
const SEED: u64 = 1;
/// Steps that are repeated by definition.
const COMPARED: usize = 5;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| -> Result<usize, Failure> {
        Ok(args.get(at).map_or(Ok(default), |text| text.parse())?)
    };
    let (train, test, epochs) = (number(0, 120)?, number(1, 50)?, number(2, 8)?);
    let out = args.get(3).map_or("projections.safetensors", String::as_str);
    let device = attn_burn::device()?;
    let (source, text) = frozen::fetched()?;
    let tasks = prompts::tasks(&wiki::articles(&text), train, test, SEED);
    let start = Instant::now();
    let frozen::Prepared { prompts: [learned, held_back], heads, query, key } =
        frozen::prepare(&attn_burn::gpu(&device)?, &source, &tasks, SEED)?;
    println!("{} prompts frozen in {:.0} s", train + test, start.elapsed().as_secs_f64());

    let device = device.autodiff();
    let make = || Projections::new(heads.clone(), &query, &key, Config::new(), &device);
    let mut run = Run::new(make()?, &learned, &heads, &device);
    println!("| epoch | loss | learned P@1 | held back P@1 | held back MRR | seconds |");
    println!("|---|---:|---:|---:|---:|---:|");
    let start = Instant::now();
    run.report("before", &held_back, &start)?;
    for epoch in 1..=epochs {
        run.epoch()?;
        run.report(&epoch.to_string(), &held_back, &start)?;
    }
    let mut again = Run::new(make()?, &learned, &heads, &device);
    let compared = COMPARED.min(run.losses.len());
    let apart = (0..compared).try_fold(0.0f64, |most, step| -> Result<f64, Failure> {
        again.step(true)?;
        Ok(most.max((again.losses[step] - run.losses[step]).abs()))
    })?;
    println!("first {compared} losses by definition within {apart:.1e}");

    let [query, key] = run.model.valid().weights()?;
    let rows = |weights: Vec<f32>| {
        Array2::from_shape_vec((weights.len() / heads.hidden, heads.hidden), weights)
    };
    Tuned { layer: LAYER, w_q: rows(query)?, w_k: rows(key)? }.save(out)?;
    println!("{out}");
    let [first, reciprocal] = ranked::judge(&attn_burn::gpu(&device)?, &source, out, &tasks[1])?;
    println!("a ranker with that file, held back: P@1 {first:.2}, MRR {reciprocal:.2}");
    Ok(())
}

/// Training, and what it came to so far.
struct Run<'a> {
    model: Projections,
    optimizer: ModuleOptimizer,
    learned: &'a [Frozen],
    heads: &'a Heads,
    device: &'a Device,
    random: Rng,
    /// Prompts of this epoch that are still to be shown.
    order: Vec<usize>,
    losses: Vec<f64>,
}

impl<'a> Run<'a> {
    fn new(
        model: Projections,
        learned: &'a [Frozen],
        heads: &'a Heads,
        device: &'a Device,
    ) -> Run<'a> {
        let (order, losses) = (Vec::new(), Vec::new());
        let random = Rng::with_seed(SEED);
        let optimizer = AdamConfig::new().with_epsilon(EPSILON).init();
        Run { model, optimizer, learned, heads, device, random, order, losses }
    }

    fn epoch(&mut self) -> Result<(), Failure> {
        for _ in 0..self.learned.len().div_ceil(BATCH) {
            self.step(false)?;
        }
        Ok(())
    }

    fn step(&mut self, by_definition: bool) -> Result<(), Failure> {
        if self.order.is_empty() {
            self.order = (0..self.learned.len()).collect();
            self.random.shuffle(&mut self.order);
        }
        let rest = self.order.split_off(BATCH.min(self.order.len()));
        let shown = std::mem::replace(&mut self.order, rest);
        let shown: Vec<_> = shown.into_iter().map(|prompt| &self.learned[prompt]).collect();
        let shown = Shown::new(&shown, self.heads, self.device)?;
        let loss = self.model.loss(&shown, by_definition)?;
        self.losses.push(loss.clone().detach().try_into_scalar::<f32>()?.into());
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        self.model = self.optimizer.step(RATE, self.model.clone(), gradients);
        Ok(())
    }

    fn report(&self, epoch: &str, held_back: &[Frozen], start: &Instant) -> Result<(), Failure> {
        let model = self.model.valid();
        let [learned, held_back] =
            [self.learned, held_back].map(|prompts| self.judge(&model, prompts));
        let ([learned, _], [first, reciprocal]) = (learned?, held_back?);
        let steps = self.learned.len().div_ceil(BATCH).min(self.losses.len());
        let last = &self.losses[self.losses.len() - steps..];
        let loss = match last.iter().sum::<f64>() / steps as f64 {
            mean if mean.is_finite() => format!("{mean:.3}"),
            _ => String::new(),
        };
        println!(
            "| {epoch} | {loss} | {learned:.2} | {first:.2} | {reciprocal:.2} | {:.0} |",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// P@1 and mean reciprocal rank.
    fn judge(&self, model: &Projections, prompts: &[Frozen]) -> Result<[f64; 2], Failure> {
        let device = self.device.clone().inner();
        let (mut first, mut reciprocal) = (0, 0.0);
        for batch in prompts.chunks(BATCH) {
            let shown = Shown::new(&batch.iter().collect::<Vec<_>>(), self.heads, &device)?;
            for place in shown.places(model.scores(&shown, false)?)? {
                first += usize::from(place == 1);
                reciprocal += 1.0 / place as f64;
            }
        }
        let count = prompts.len().max(1) as f64;
        Ok([first as f64 / count, reciprocal / count])
    }
}
