//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// Largest width of one table: the query of a search lies in workgroup memory.
pub(crate) const MAX_WIDTH: usize = 256;
/// Largest number of kept behaviours: lists of a search lie in workgroup memory.
pub(crate) const MAX_KEEP: usize = 128;

/// How much of a behaviour's embedding is item, category and time slot, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Widths {
    /// Of the item's table.
    pub item: usize,
    /// Of the category's table.
    pub category: usize,
    /// Of the table of time slots.
    pub time: usize,
}

impl Widths {
    /// Of the three tables.
    pub fn new(item: usize, category: usize, time: usize) -> Self {
        Widths { item, category, time }
    }

    /// One width for all three, as the paper's "embedding dim" means it.
    pub fn each(width: usize) -> Self {
        Widths::new(width, width, width)
    }

    /// All together: `A` of the search, `D` of the representation.
    pub fn sum(&self) -> usize {
        self.item + self.category + self.time
    }

    pub(crate) fn all(&self) -> [usize; 3] {
        [self.item, self.category, self.time]
    }

    fn check(&self, arg: &'static str) -> Result<()> {
        match self.all().into_iter().find(|width| !(1..=MAX_WIDTH).contains(width)) {
            Some(width) => Err(Error::config(arg, format!("widths of 1 to {MAX_WIDTH}"), width)),
            None => Ok(()),
        }
    }
}

impl Default for Widths {
    /// 16 each.
    fn default() -> Self {
        Widths::each(16)
    }
}

/// How products of embeddings become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Scores {
    /// Item and category together and time alone, each over the root of its own width: what the authors'
    /// code computes.
    #[default]
    Split,
    /// One product over the root of the whole width: what the paper writes.
    Joint,
}

/// Which behaviours the search keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Search {
    /// Those with the highest scores.
    #[default]
    Scores,
    /// The newest of the candidate's category ("hard search"). Scores still weigh what is kept.
    Category,
}

/// The parameters of the model. Defaults are those of the authors' scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Of the tables that search. Default: 16 each.
    pub attention: Widths,
    /// Of the tables that are pooled and classified. Default: 16 each.
    pub representation: Widths,
    /// Behaviours to keep, K; at most 128. Default: 20.
    pub keep: usize,
    /// Default: [`Scores::Split`].
    pub scores: Scores,
    /// Default: [`Search::Scores`].
    pub search: Search,
    /// Whether features hold the product of candidate and pooled history. Default: yes.
    pub target_aware: bool,
    /// Whether the features of the auxiliary head, pooled over all behaviours, are computed as well: for
    /// training. Default: yes.
    pub auxiliary: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            attention: Widths::default(),
            representation: Widths::default(),
            keep: 20,
            scores: Scores::default(),
            search: Search::default(),
            target_aware: true,
            auxiliary: true,
        }
    }
}

impl Config {
    /// The defaults.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with other widths of the tables that search and of those that are pooled. Tied tables need
    /// equal ones.
    pub fn with_widths(self, attention: Widths, representation: Widths) -> Self {
        Config { attention, representation, ..self }
    }

    /// The same keeping `keep` behaviours.
    pub fn with_keep(self, keep: usize) -> Self {
        Config { keep, ..self }
    }

    /// The same with scores of another form.
    pub fn with_scores(self, scores: Scores) -> Self {
        Config { scores, ..self }
    }

    /// The same with another search.
    pub fn with_search(self, search: Search) -> Self {
        Config { search, ..self }
    }

    /// The same without the product of candidate and pooled history.
    pub fn without_target_aware(self) -> Self {
        Config { target_aware: false, ..self }
    }

    /// The same without the auxiliary features: for serving, and for a loss of the main head alone.
    pub fn without_auxiliary(self) -> Self {
        Config { auxiliary: false, ..self }
    }

    /// Width of the features of a head: `3 D`, or `2 D` without the product.
    pub fn features(&self) -> usize {
        self.representation.sum() * if self.target_aware { 3 } else { 2 }
    }

    /// Factors of the products of items and categories, and of time slots.
    pub fn scales(&self) -> [f64; 2] {
        let Widths { item, category, time } = self.attention;
        let root = |width: usize| 1.0 / (width.max(1) as f64).sqrt();
        match self.scores {
            Scores::Split => [root(item + category), root(time)],
            Scores::Joint => [root(self.attention.sum()); 2],
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a width outside 1 to 256, or a `keep` outside 1 to 128.
    pub fn validate(&self) -> Result<()> {
        self.attention.check("attention")?;
        self.representation.check("representation")?;
        if !(1..=MAX_KEEP).contains(&self.keep) {
            return Err(Error::config("keep", format!("1 to {MAX_KEEP}"), self.keep));
        }
        Ok(())
    }
}
