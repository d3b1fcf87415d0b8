//! The paper's equations in f64, written to be read.
//!
//! For each request, with `q`, `k_j` from the tables that search and `v`, `e_j` from those that are pooled,
//! each the embeddings of item, category and time slot side by side:
//!
//! ```text
//! s_j = <q_sem, k_sem_j> / sqrt(a_item + a_cat) + <q_time, k_time_j> / sqrt(a_time)        section 3
//! idx = the K largest s_j, of equals the smallest j;  w = softmax of s over idx
//! h   = sum_j w_j e_j                                x = (v, h, v * h)
//! ```
//!
//! The auxiliary head gets the same with the softmax over all behaviours. Padding never takes part, and with
//! nothing to pool `h` is 0. [`Head`] classifies `x`.

mod backward;
mod head;
mod tables;

use ndarray::{Array1, Array2, ArrayView1, Axis, concatenate, s};

use attn_core::{Error, Result};

pub use self::backward::{Cotangents, Grads, backward};
pub use self::head::{
    Head, HeadCotangents, HeadGrads, HeadOutput, HeadSaved, Linear, Statistics, penalty,
};
pub use self::tables::{Embeddings, Tables};

use crate::config::{Config, Search};

/// A candidate and a history for each of B requests.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Candidates' items `[B]`.
    pub item: Array1<u32>,
    /// Candidates' categories `[B]`.
    pub category: Array1<u32>,
    /// Items of the histories `[B, N]`, the oldest first; 0 is padding where there is no mask.
    pub history_item: Array2<u32>,
    /// Categories of the histories `[B, N]`.
    pub history_category: Array2<u32>,
    /// Candidates' time slots `[B]`. Default: 0.
    pub time: Option<Array1<u32>>,
    /// Time slots of the histories `[B, N]`. Default: N for the first place and 1 for the last.
    pub history_time: Option<Array2<u32>>,
    /// Which behaviours count `[B, N]`. Default: those whose item is not 0.
    pub mask: Option<Array2<bool>>,
}

impl Batch {
    /// Candidates `[B]` and histories `[B, N]`, padded with items of 0, slots by place.
    pub fn new(
        item: Array1<u32>,
        category: Array1<u32>,
        history_item: Array2<u32>,
        history_category: Array2<u32>,
    ) -> Self {
        Batch {
            item,
            category,
            history_item,
            history_category,
            time: None,
            history_time: None,
            mask: None,
        }
    }

    /// The same with time slots of the candidates `[B]` and the histories `[B, N]`.
    pub fn with_times(self, time: Array1<u32>, history_time: Array2<u32>) -> Self {
        Batch { time: Some(time), history_time: Some(history_time), ..self }
    }

    /// The same with a mask `[B, N]` of the behaviours that count, whatever their item.
    pub fn with_mask(self, mask: Array2<bool>) -> Self {
        Batch { mask: Some(mask), ..self }
    }

    /// Whether behaviour `j` of request `b` counts.
    pub fn counts(&self, b: usize, j: usize) -> bool {
        match &self.mask {
            Some(mask) => mask[[b, j]],
            None => self.history_item[[b, j]] != 0,
        }
    }

    /// Ids of a candidate: item, category, slot.
    fn candidate(&self, b: usize) -> [usize; 3] {
        let time = self.time.as_ref().map_or(0, |time| time[b]);
        [self.item[b], self.category[b], time].map(|id| id as usize)
    }

    /// Ids of a behaviour.
    fn behaviour(&self, b: usize, j: usize) -> [usize; 3] {
        let by_place = (self.history_item.ncols() - j) as u32;
        let time = self.history_time.as_ref().map_or(by_place, |time| time[[b, j]]);
        [self.history_item[[b, j]], self.history_category[[b, j]], time].map(|id| id as usize)
    }

    /// Checks shapes, and ids against tables of so many items, categories and slots. Ids of behaviours that do
    /// not count may be anything.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Data`] for an id that a table does not have.
    pub fn check(&self, rows: [usize; 3]) -> Result<()> {
        let (requests, length) = self.history_item.dim();
        let vectors = [
            ("item", Some(&self.item)),
            ("category", Some(&self.category)),
            ("time", self.time.as_ref()),
        ];
        for (arg, vector) in vectors {
            if let Some(vector) = vector.filter(|vector| vector.len() != requests) {
                return Err(Error::shape(arg, format!("[{requests}]"), vector.shape()));
            }
        }
        let shapes = [
            ("history_category", Some(self.history_category.shape())),
            ("history_time", self.history_time.as_ref().map(|time| time.shape())),
            ("mask", self.mask.as_ref().map(|mask| mask.shape())),
        ];
        for (arg, shape) in shapes {
            if let Some(shape) = shape.filter(|shape| *shape != [requests, length]) {
                return Err(Error::shape(arg, format!("[{requests}, {length}]"), shape));
            }
        }
        let check =
            |ids: [usize; 3], names: [&'static str; 3]| match (0..3).find(|&i| ids[i] >= rows[i]) {
                Some(i) => Err(Error::data(names[i], format!("ids below {}", rows[i]), ids[i])),
                None => Ok(()),
            };
        for b in 0..requests {
            check(self.candidate(b), ["item", "category", "time"])?;
            for j in (0..length).filter(|&j| self.counts(b, j)) {
                let names = ["history_item", "history_category", "history_time"];
                check(self.behaviour(b, j), names)?;
            }
        }
        Ok(())
    }
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// `[B, N]`, -inf where a behaviour does not count.
    pub scores: Array2<f64>,
    /// Which behaviours were kept `[B, K]`, the highest score first; -1 in unused places.
    pub index: Array2<i64>,
    /// Their weights, at their places in the history `[B, N]`; 0 elsewhere.
    pub weights: Array2<f64>,
    /// Weights of all behaviours `[B, N]`.
    pub weights_full: Array2<f64>,
    /// The history pooled over what was kept `[B, D]`.
    pub h: Array2<f64>,
    /// Pooled over all behaviours `[B, D]`.
    pub h_full: Array2<f64>,
    /// Of the head, `[B, 3 D]` or `[B, 2 D]`.
    pub features: Array2<f64>,
    /// Of the auxiliary head, of the same shape.
    pub aux_features: Array2<f64>,
}

/// Searches, pools over what was found and over everything, and makes the features of both heads.
///
/// # Errors
/// [`Error`] for a configuration, tables or ids that do not fit.
pub fn forward(tables: &Tables, batch: &Batch, config: &Config) -> Result<Output> {
    let rows = tables.check(config)?;
    batch.check(rows)?;
    let (requests, length) = batch.history_item.dim();
    let scores = scores(tables, batch, config);
    let index = search(&scores, batch, config);
    let mut kept = Array2::from_elem((requests, length), false);
    for ((b, _), &j) in index.indexed_iter() {
        if let Ok(j) = usize::try_from(j) {
            kept[[b, j]] = true;
        }
    }
    let weights = softmax(&scores, |b, j| kept[[b, j]]);
    let weights_full = softmax(&scores, |b, j| batch.counts(b, j));
    let v =
        stack(requests, |b| tables.pooled().row(batch.candidate(b)), config.representation.sum());
    let h = pool(tables, batch, &weights, config);
    let h_full = pool(tables, batch, &weights_full, config);
    let features = features(&v, &h, config);
    let aux_features = self::features(&v, &h_full, config);
    Ok(Output { scores, index, weights, weights_full, h, h_full, features, aux_features })
}

/// Rows that a function makes, one a request.
fn stack(rows: usize, row: impl Fn(usize) -> Array1<f64>, width: usize) -> Array2<f64> {
    let mut all = Array2::zeros((rows, width));
    for b in 0..rows {
        all.row_mut(b).assign(&row(b));
    }
    all
}

/// Scores of all behaviours, -inf where they do not count.
fn scores(tables: &Tables, batch: &Batch, config: &Config) -> Array2<f64> {
    let semantic = config.attention.item + config.attention.category;
    let scales = config.scales();
    Array2::from_shape_fn(batch.history_item.dim(), |(b, j)| {
        if !batch.counts(b, j) {
            return f64::NEG_INFINITY;
        }
        let q = tables.attention.row(batch.candidate(b));
        let k = tables.attention.row(batch.behaviour(b, j));
        q.slice(s![..semantic]).dot(&k.slice(s![..semantic])) * scales[0]
            + q.slice(s![semantic..]).dot(&k.slice(s![semantic..])) * scales[1]
    })
}

/// The K largest of each row in falling order, of equals the first; NaN and what does not count never.
fn search(scores: &Array2<f64>, batch: &Batch, config: &Config) -> Array2<i64> {
    let (requests, length) = scores.dim();
    let mut index = Array2::from_elem((requests, config.keep), -1);
    for b in 0..requests {
        let mut found: Vec<usize> = (0..length).filter(|&j| batch.counts(b, j)).collect();
        match config.search {
            Search::Scores => {
                found.retain(|&j| !scores[[b, j]].is_nan());
                // A stable sort leaves equals in order. -0 equals 0.
                found.sort_by(|&i, &j| (scores[[b, j]] + 0.0).total_cmp(&(scores[[b, i]] + 0.0)));
            }
            Search::Category => {
                found.retain(|&j| batch.history_category[[b, j]] == batch.category[b]);
                found.reverse();
            }
        }
        for (place, j) in found.into_iter().take(config.keep).enumerate() {
            index[[b, place]] = j as i64;
        }
    }
    index
}

/// Softmax over the elements of each row that take part; 0 elsewhere, and everywhere if none does.
fn softmax(scores: &Array2<f64>, takes_part: impl Fn(usize, usize) -> bool) -> Array2<f64> {
    let mut weights = Array2::zeros(scores.dim());
    for (b, row) in scores.axis_iter(Axis(0)).enumerate() {
        let parts: Vec<usize> = (0..row.len()).filter(|&j| takes_part(b, j)).collect();
        let top = parts.iter().fold(f64::NEG_INFINITY, |top, &j| row[j].max(top));
        let sum: f64 = parts.iter().map(|&j| (row[j] - top).exp()).sum();
        for j in parts {
            weights[[b, j]] = (row[j] - top).exp() / sum;
        }
    }
    weights
}

/// `sum_j w_j e_j`. What weighs nothing is not read.
fn pool(tables: &Tables, batch: &Batch, weights: &Array2<f64>, config: &Config) -> Array2<f64> {
    let width = config.representation.sum();
    let pooled = |b: usize| {
        let mut sum = Array1::zeros(width);
        for (j, &weight) in weights.row(b).iter().enumerate() {
            if weight != 0.0 {
                sum.scaled_add(weight, &tables.pooled().row(batch.behaviour(b, j)));
            }
        }
        sum
    };
    stack(weights.nrows(), pooled, width)
}

fn features(v: &Array2<f64>, h: &Array2<f64>, config: &Config) -> Array2<f64> {
    let product = v * h;
    let mut parts = vec![v.view(), h.view()];
    if config.target_aware {
        parts.push(product.view());
    }
    let width: usize = parts.iter().map(|part| part.ncols()).sum();
    // Parts of one height always fit together.
    concatenate(Axis(1), &parts).unwrap_or_else(|_| Array2::zeros((v.nrows(), width)))
}

/// Adds a row to one of a table.
fn add_row(table: &mut Array2<f64>, row: usize, factor: f64, addend: ArrayView1<'_, f64>) {
    table.row_mut(row).scaled_add(factor, &addend);
}
