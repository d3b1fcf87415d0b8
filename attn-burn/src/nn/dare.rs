//! DARE: tables, search and heads.

mod head;

use attn_core::Error;
use attn_dare::{Config as Parameters, Widths};
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};

pub use self::head::DareHead;
use crate::ops::{self, Embeddings, Requests};

/// Deviation of embeddings, before anything is learned.
const EMBEDDING: f64 = 0.01;

/// Extents of a [`Dare`].
#[derive(Config, Debug)]
pub struct DareConfig {
    /// Rows of the tables of items; row 0 is padding.
    pub items: usize,
    /// Rows of the tables of categories; row 0 is padding.
    pub categories: usize,
    /// Behaviours of a history at most.
    pub history: usize,
    /// Whether one set of tables serves search and representation, as in TWIN.
    #[config(default = false)]
    pub tied: bool,
    /// Widths of the hidden layers of the main head.
    #[config(default = "vec![200, 80]")]
    pub hidden: Vec<usize>,
    /// Widths of the hidden layers of the auxiliary head.
    #[config(default = "vec![200]")]
    pub auxiliary_hidden: Vec<usize>,
}

/// Embedding tables of items, categories and time slots.
#[derive(Module, Debug)]
pub struct DareTables {
    /// `[items, width]`.
    pub item: Param<Tensor<2>>,
    /// `[categories, width]`.
    pub category: Param<Tensor<2>>,
    /// `[history + 1, width]`; row 0 is the candidate's, row 1 the newest behaviour's.
    pub time: Param<Tensor<2>>,
}

/// The probability of a click from a history that is searched for what resembles the candidate, see
/// [`attn_dare`].
#[derive(Module, Debug)]
pub struct Dare {
    /// Tables that search; none where they are tied to the others.
    pub attention: Option<DareTables>,
    /// Tables that are pooled and classified.
    pub representation: DareTables,
    /// Of the behaviours that the search kept.
    pub main: DareHead,
    /// Of all behaviours, for training.
    pub auxiliary: DareHead,
    #[module(skip)]
    search: ops::Dare,
}

/// Probabilities of a click and of none, `[B, 2]`, each with 1e-8 added.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Clicks {
    /// By the behaviours that the search kept.
    pub main: Tensor<2>,
    /// By all behaviours.
    pub auxiliary: Tensor<2>,
}

impl DareConfig {
    /// The module with random weights: embeddings of deviation 0.01, maps of variance `1 / in`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Parameters::validate`]; for tied tables of unlike widths, for
    /// parameters without the auxiliary features, and for no item or category.
    pub fn init(&self, parameters: Parameters, device: &Device) -> Result<Dare> {
        let (attention, representation) = (parameters.attention, parameters.representation);
        if self.tied && attention != representation {
            let expected = format!("{representation:?}, as the tables are tied");
            return Err(Error::config("attention", expected, format!("{attention:?}")).into());
        }
        if !parameters.auxiliary {
            return Err(Error::config("auxiliary", "true", "false").into());
        }
        for (arg, rows) in [("items", self.items), ("categories", self.categories)] {
            if rows == 0 {
                return Err(Error::config(arg, "at least 1", rows).into());
            }
        }
        let features = parameters.features();
        Ok(Dare {
            attention: (!self.tied).then(|| self.tables(attention, device)),
            representation: self.tables(representation, device),
            main: DareHead::new(features, &self.hidden, device),
            auxiliary: DareHead::new(features, &self.auxiliary_hidden, device),
            search: ops::Dare::new(parameters)?,
        })
    }

    fn tables(&self, widths: Widths, device: &Device) -> DareTables {
        let initializer = Initializer::Normal { mean: 0.0, std: EMBEDDING };
        let table = |rows: usize, width: usize| initializer.init([rows, width], device);
        DareTables {
            item: table(self.items, widths.item),
            category: table(self.categories, widths.category),
            time: table(self.history.saturating_add(1), widths.time),
        }
    }
}

impl DareTables {
    fn values(&self) -> Embeddings {
        let DareTables { item, category, time } = self;
        Embeddings { item: item.val(), category: category.val(), time: time.val() }
    }
}

impl Dare {
    /// The search, with its parameters.
    pub fn search(&self) -> &ops::Dare {
        &self.search
    }

    /// Probabilities for each request.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, requests: Requests) -> Result<Clicks> {
        let features = self.features(requests)?;
        let all = features.auxiliary.unwrap_or_else(|| features.main.clone());
        Ok(Clicks {
            main: self.main.forward(features.main),
            auxiliary: self.auxiliary.forward(all),
        })
    }

    /// What the heads read.
    ///
    /// # Errors
    /// As [`Dare::forward`].
    pub fn features(&self, requests: Requests) -> Result<ops::Features> {
        let representation = self.representation.values();
        let attention = self.attention.as_ref().map(DareTables::values);
        let attention = attention.unwrap_or_else(|| representation.clone());
        self.search.forward(attention, representation, requests)
    }

    /// The loss `[1]` of both heads for labels `[B, 2]`, 1 in the first column for a click, in the second for
    /// none: `-mean ln p_main[label] - mean ln p_auxiliary[label]`, and `decay` times the sum of squares of
    /// all weights but biases and embeddings.
    ///
    /// # Errors
    /// As [`Dare::forward`], and [`attn_core::Error::Shape`] for labels of another shape.
    pub fn loss(&self, requests: Requests, labels: Tensor<2>, decay: f64) -> Result<Tensor<1>> {
        let Clicks { main, auxiliary } = self.forward(requests)?;
        if labels.dims() != main.dims() {
            let expected = format!("{:?}", main.dims());
            return Err(Error::shape("labels", expected, &labels.dims()).into());
        }
        let [count, _] = labels.dims();
        let of = |p: Tensor<2>| (p.log() * labels.clone()).sum() / -(count as f64);
        let squares = self.main.squares() + self.auxiliary.squares();
        Ok(of(main) + of(auxiliary) + squares * decay)
    }
}
