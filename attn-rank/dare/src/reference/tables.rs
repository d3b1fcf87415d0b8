//! Embedding tables on the host.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array1, Array2, Axis, Ix2, concatenate, s};

use super::add_row;
use crate::config::{Config, Widths};

/// The tables of one stage: a row for each item, category and time slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `[items, width]`.
    pub item: Array2<f64>,
    /// `[categories, width]`.
    pub category: Array2<f64>,
    /// `[slots, width]`.
    pub time: Array2<f64>,
}

impl Embeddings {
    /// All zeros.
    pub fn zeros(rows: [usize; 3], widths: Widths) -> Self {
        let [item, category, time] = widths.all();
        Embeddings {
            item: Array2::zeros((rows[0], item)),
            category: Array2::zeros((rows[1], category)),
            time: Array2::zeros((rows[2], time)),
        }
    }

    pub(super) fn all(&self) -> [&Array2<f64>; 3] {
        [&self.item, &self.category, &self.time]
    }

    /// The embeddings of item, category and slot, side by side.
    pub(super) fn row(&self, ids: [usize; 3]) -> Array1<f64> {
        let rows = [self.item.row(ids[0]), self.category.row(ids[1]), self.time.row(ids[2])];
        let width: usize = rows.iter().map(|row| row.len()).sum();
        concatenate(Axis(0), &rows).unwrap_or_else(|_| Array1::zeros(width))
    }

    /// Adds `factors * row` to the rows of three ids, the second factor for the slot.
    pub(super) fn add(&mut self, ids: [usize; 3], factors: [f64; 2], row: &Array1<f64>) {
        let item = self.item.ncols();
        let semantic = item + self.category.ncols();
        add_row(&mut self.item, ids[0], factors[0], row.slice(s![..item]));
        add_row(&mut self.category, ids[1], factors[0], row.slice(s![item..semantic]));
        add_row(&mut self.time, ids[2], factors[1], row.slice(s![semantic..]));
    }

    /// The sum of two stages' arrays: the gradient of tied tables from those of both stages.
    pub fn sum(&self, other: &Embeddings) -> Embeddings {
        Embeddings {
            item: &self.item + &other.item,
            category: &self.category + &other.category,
            time: &self.time + &other.time,
        }
    }
}

/// Both stages' tables; one set for both where `representation` is `None` (TWIN).
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    /// Eatt: what scores are made of.
    pub attention: Embeddings,
    /// Erep: what is pooled and classified.
    pub representation: Option<Embeddings>,
}

/// What the metadata of a file calls itself.
const KIND: &str = "dare tables";
const ATTENTION: [&str; 3] = ["att_item", "att_cat", "att_time"];
const REPRESENTATION: [&str; 3] = ["rep_item", "rep_cat", "rep_time"];

impl Tables {
    /// A set of tables for each stage.
    pub fn new(attention: Embeddings, representation: Embeddings) -> Self {
        Tables { attention, representation: Some(representation) }
    }

    /// One set of tables for both.
    pub fn tied(embeddings: Embeddings) -> Self {
        Tables { attention: embeddings, representation: None }
    }

    /// The tables that are pooled.
    pub fn pooled(&self) -> &Embeddings {
        self.representation.as_ref().unwrap_or(&self.attention)
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = ArrayFile::new(KIND);
        for (name, table) in ATTENTION.into_iter().zip(self.attention.all()) {
            file = file.with(name, table.view());
        }
        if let Some(own) = &self.representation {
            for (name, table) in REPRESENTATION.into_iter().zip(own.all()) {
                file = file.with(name, table.view());
            }
        }
        file.write(path)
    }

    /// Reads what [`Tables::save`] wrote, or a file of anybody with tables of the same names in F16, BF16, F32
    /// or F64: `att_item`, `att_cat`, `att_time`, and `rep_item`, `rep_cat`, `rep_time` unless they are tied.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or lacks a table.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = ArrayFile::open(path)?;
        let stage = |names: [&str; 3]| {
            Ok::<_, Error>(Embeddings {
                item: file.get::<Ix2>(names[0])?,
                category: file.get::<Ix2>(names[1])?,
                time: file.get::<Ix2>(names[2])?,
            })
        };
        let is_tied = REPRESENTATION.iter().all(|name| !file.contains(name));
        let representation = if is_tied { None } else { Some(stage(REPRESENTATION)?) };
        Ok(Tables { attention: stage(ATTENTION)?, representation })
    }

    /// Checks the shapes against a configuration, and gives the numbers of items, categories and slots.
    ///
    /// # Errors
    /// [`Error::Shape`] for a table that does not fit; [`Error::Config`], see [`Config::validate`].
    pub fn check(&self, config: &Config) -> Result<[usize; 3]> {
        config.validate()?;
        let rows = self.attention.all().map(|table| table.nrows());
        let stages = [
            (ATTENTION, &self.attention, config.attention),
            (REPRESENTATION, self.pooled(), config.representation),
        ];
        for (names, own, widths) in stages {
            for (i, (table, width)) in own.all().into_iter().zip(widths.all()).enumerate() {
                if table.dim() != (rows[i], width) || rows[i] == 0 {
                    let expected = format!("[{}, {width}]", rows[i].max(1));
                    return Err(Error::shape(names[i], expected, table.shape()));
                }
            }
        }
        Ok(rows)
    }
}
