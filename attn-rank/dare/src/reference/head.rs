//! The classifier of a request's features.

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Ix1, Ix2};

/// Added to probabilities, so that their logarithms exist.
const FLOOR: f64 = 1e-8;
/// Added to variances.
const EPS: f64 = 1e-5;

/// A layer `x W^T + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Array2<f64>,
    /// `[out]`.
    pub bias: Array1<f64>,
}

/// What a normalisation at inference takes in place of the batch's mean and variance.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `[in]`.
    pub mean: Array1<f64>,
    /// `[in]`.
    pub variance: Array1<f64>,
}

impl Statistics {
    /// The next running statistics: those of a batch with weight `momentum`, its variance unbiased.
    pub fn update(&mut self, batch: &Statistics, rows: usize, momentum: f64) {
        let unbiased = rows as f64 / (rows as f64 - 1.0).max(1.0);
        self.mean.zip_mut_with(&batch.mean, |own, new| *own += momentum * (new - *own));
        let step = |own: &mut f64, new: &f64| *own += momentum * (new * unbiased - *own);
        self.variance.zip_mut_with(&batch.variance, step);
    }
}

/// Batch normalisation, then linear layers with a PReLU of one slope between two of them; the last one has two
/// outputs, of which the first is a click. The main head has three layers, the auxiliary one two.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Of the normalisation `[in]`.
    pub gain: Array1<f64>,
    /// Of the normalisation `[in]`.
    pub bias: Array1<f64>,
    /// At least one.
    pub layers: Vec<Linear>,
    /// Behind each layer but the last.
    pub slopes: Vec<f64>,
}

/// What a head computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HeadOutput {
    /// Probabilities of a click and of none, with the floor of 1e-8 added, `[B, 2]`.
    pub prob: Array2<f64>,
    /// Mean and biased variance of the features; of this batch, or those that were given.
    pub statistics: Statistics,
}

/// What [`Head::backward`] needs of a call.
#[derive(Debug, Clone)]
pub struct HeadSaved {
    hat: Array2<f64>,
    /// Inputs of the layers.
    inputs: Vec<Array2<f64>>,
    /// Their outputs.
    outputs: Vec<Array2<f64>>,
    statistics: Statistics,
    fixed: bool,
}

/// Derivatives by what a head returned.
#[derive(Debug, Clone, Copy)]
pub struct HeadCotangents<'a> {
    /// By the probabilities.
    pub prob: ArrayView2<'a, f64>,
}

/// Derivatives of a loss by a head's parameters and features.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HeadGrads {
    /// By the features.
    pub x: Array2<f64>,
    /// By the parameters, in their places.
    pub head: Head,
}

impl Head {
    /// Names of a head's parameters in files, as the authors' code has them: the normalisation's gain and bias,
    /// then weight and bias of each layer with the slope behind it.
    fn names(prefix: &str, layer: usize) -> [String; 3] {
        let at = |offset| format!("{prefix}.{}", 2 * layer + offset);
        [format!("{}.weight", at(1)), format!("{}.bias", at(1)), format!("{}.weight", at(2))]
    }

    /// Adds the parameters to a file under names that begin with `prefix`, as `main_mlp`.
    pub fn write(&self, mut file: ArrayFile, prefix: &str) -> ArrayFile {
        file = file.with(&format!("{prefix}.0.weight"), self.gain.view());
        file = file.with(&format!("{prefix}.0.bias"), self.bias.view());
        for (i, layer) in self.layers.iter().enumerate() {
            let [weight, bias, slope] = Head::names(prefix, i);
            file = file.with(&weight, layer.weight.view()).with(&bias, layer.bias.view());
            if let Some(own) = self.slopes.get(i) {
                file = file.with(&slope, Array1::from_elem(1, *own).view());
            }
        }
        file
    }

    /// Reads parameters under names that begin with `prefix`; as many layers as there are.
    ///
    /// # Errors
    /// [`Error::File`] where one is missing or of another rank; [`Error::Shape`] where they do not fit.
    pub fn read(file: &ArrayFile, prefix: &str) -> Result<Head> {
        let gain = file.get::<Ix1>(&format!("{prefix}.0.weight"))?;
        let bias = file.get::<Ix1>(&format!("{prefix}.0.bias"))?;
        let (mut layers, mut slopes) = (Vec::new(), Vec::new());
        loop {
            let [weight, bias, slope] = Head::names(prefix, layers.len());
            layers
                .push(Linear { weight: file.get::<Ix2>(&weight)?, bias: file.get::<Ix1>(&bias)? });
            if !file.contains(&slope) {
                break;
            }
            let own = file.get::<Ix1>(&slope)?;
            slopes.push(own.first().copied().unwrap_or(0.0));
        }
        let head = Head { gain, bias, layers, slopes };
        head.check(head.gain.len())?;
        Ok(head)
    }

    /// Checks that everything fits together and takes features of this width.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Config`].
    pub fn check(&self, width: usize) -> Result<()> {
        for (arg, own) in [("gain", &self.gain), ("bias", &self.bias)] {
            if own.len() != width {
                return Err(Error::shape(arg, format!("[{width}]"), own.shape()));
            }
        }
        if self.layers.is_empty() || self.slopes.len() + 1 != self.layers.len() {
            let expected = "one fewer than layers, of which there is one at least";
            return Err(Error::config("slopes", expected, self.slopes.len()));
        }
        let mut inputs = width;
        for (i, Linear { weight, bias }) in self.layers.iter().enumerate() {
            let outputs = if i + 1 == self.layers.len() { 2 } else { weight.nrows() };
            if weight.dim() != (outputs, inputs) {
                let expected = format!("[{outputs}, {inputs}]");
                return Err(Error::shape("weight", expected, weight.shape()));
            }
            if bias.len() != outputs {
                return Err(Error::shape("bias", format!("[{outputs}]"), bias.shape()));
            }
            inputs = outputs;
        }
        Ok(())
    }

    /// Probabilities of features `[B, in]`; normalised by their own mean and biased variance (training), or by
    /// `statistics` (inference).
    ///
    /// # Errors
    /// As [`Head::check`].
    pub fn forward(
        &self,
        x: ArrayView2<'_, f64>,
        statistics: Option<&Statistics>,
    ) -> Result<(HeadOutput, HeadSaved)> {
        self.check(x.ncols())?;
        let rows = x.nrows().max(1) as f64;
        let own = statistics.cloned().unwrap_or_else(|| {
            let mean = x.sum_axis(Axis(0)) / rows;
            let variance = (&x - &mean).mapv(|off| off * off).sum_axis(Axis(0)) / rows;
            Statistics { mean, variance }
        });
        let hat = (&x - &own.mean) / own.variance.mapv(|variance| (variance + EPS).sqrt());
        let mut y = &hat * &self.gain + &self.bias;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for (i, layer) in self.layers.iter().enumerate() {
            let out = y.dot(&layer.weight.t()) + &layer.bias;
            inputs.push(y);
            y = match self.slopes.get(i) {
                Some(&slope) => out.mapv(|x| if x > 0.0 { x } else { slope * x }),
                None => out.clone(),
            };
            outputs.push(out);
        }
        let prob = probabilities(&y).mapv(|p| p + FLOOR);
        let fixed = statistics.is_some();
        let saved = HeadSaved { hat, inputs, outputs, statistics: own.clone(), fixed };
        Ok((HeadOutput { prob, statistics: own }, saved))
    }

    /// The vector-Jacobian product of [`Head::forward`].
    ///
    /// # Errors
    /// [`Error::Shape`] for cotangents of another shape.
    pub fn backward(&self, saved: &HeadSaved, cotangents: HeadCotangents<'_>) -> Result<HeadGrads> {
        let Some(logits) = saved.outputs.last() else {
            return Err(Error::config("layers", "at least one", 0));
        };
        if cotangents.prob.shape() != logits.shape() {
            let expected = format!("{:?}", logits.shape());
            return Err(Error::shape("cotangents.prob", expected, cotangents.prob.shape()));
        }
        let p = probabilities(logits);
        let mean = (&cotangents.prob * &p).sum_axis(Axis(1)).insert_axis(Axis(1));
        let mut dy = &p * &(&cotangents.prob - &mean);
        let mut grads = self.clone();
        for i in (0..self.layers.len()).rev() {
            if let Some(&slope) = self.slopes.get(i) {
                let out = &saved.outputs[i];
                let below = dy.iter().zip(out).filter(|(_, out)| **out <= 0.0);
                grads.slopes[i] = below.map(|(dy, out)| dy * out).sum();
                dy.zip_mut_with(out, |dy, &out| *dy *= if out > 0.0 { 1.0 } else { slope });
            }
            grads.layers[i].weight = dy.t().dot(&saved.inputs[i]);
            grads.layers[i].bias = dy.sum_axis(Axis(0));
            dy = dy.dot(&self.layers[i].weight);
        }
        grads.bias = dy.sum_axis(Axis(0));
        grads.gain = (&dy * &saved.hat).sum_axis(Axis(0));
        let root = saved.statistics.variance.mapv(|variance| 1.0 / (variance + EPS).sqrt());
        if !saved.fixed {
            let rows = dy.nrows().max(1) as f64;
            dy = &dy - &(&grads.bias / rows) - &saved.hat * &(&grads.gain / rows);
        }
        Ok(HeadGrads { x: dy * &(&self.gain * &root), head: grads })
    }
}

impl HeadOutput {
    /// `-mean log prob[label]`, where label 0 is a click, and its derivative by the probabilities.
    ///
    /// # Errors
    /// [`Error`] for labels of another number, or others than 0 and 1.
    pub fn loss(&self, label: ArrayView1<'_, u32>) -> Result<(f64, Array2<f64>)> {
        let rows = self.prob.nrows();
        if label.len() != rows {
            return Err(Error::shape("label", format!("[{rows}]"), label.shape()));
        }
        let mut by_prob = Array2::zeros(self.prob.dim());
        let mut sum = 0.0;
        for (b, &label) in label.iter().enumerate() {
            if label > 1 {
                return Err(Error::data("label", "0 and 1", label));
            }
            let prob = self.prob[[b, label as usize]];
            sum -= prob.ln();
            by_prob[[b, label as usize]] = -1.0 / (prob * rows as f64);
        }
        Ok((sum / rows.max(1) as f64, by_prob))
    }
}

fn probabilities(logits: &Array2<f64>) -> Array2<f64> {
    let mut p = logits.clone();
    for mut row in p.axis_iter_mut(Axis(0)) {
        let top = row.iter().fold(f64::NEG_INFINITY, |top, x| x.max(top));
        row.mapv_inplace(|x| (x - top).exp());
        let sum = row.sum();
        row /= sum;
    }
    p
}

/// The sum of squares of all parameters that are no bias: what the loss adds with a factor of 1e-6.
pub fn penalty(heads: &[&Head]) -> f64 {
    let squares = |head: &&Head| {
        let layers: f64 = head.layers.iter().map(|layer| square(layer.weight.iter())).sum();
        square(head.gain.iter()) + square(head.slopes.iter()) + layers
    };
    heads.iter().map(squares).sum()
}

fn square<'a>(numbers: impl Iterator<Item = &'a f64>) -> f64 {
    numbers.map(|x| x * x).sum()
}
