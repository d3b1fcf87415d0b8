//! What is configured, and where the tokens of an image lie.

use std::ops::Range;

use attn_core::{Error, Result};

/// Where the flow is multiplied by the column factor `rho`, which makes up for the mass that the early
/// columns of a causal model collect at every product of layers (section 2.3). The paper does not say where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Regularisation {
    /// Once, behind the last layer.
    #[default]
    Once,
    /// Behind every layer. In deep models nearly all mass goes to the last tokens.
    PerLayer,
    /// Nowhere.
    None,
}

/// How maps are made of attention.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Where the column factor goes.
    pub regularisation: Regularisation,
    /// Whether heads count by how peaked their rows are (section 2.1), else all alike.
    pub head_weights: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { regularisation: Regularisation::Once, head_weights: true }
    }
}

impl Config {
    /// Regularised once, with head weights.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with the column factor elsewhere.
    pub fn with_regularisation(self, regularisation: Regularisation) -> Self {
        Config { regularisation, ..self }
    }

    /// The same with all heads alike.
    pub fn without_head_weights(self) -> Self {
        Config { head_weights: false, ..self }
    }

    /// Checks the configuration, as that of any mechanism. Every one that can be written is usable.
    ///
    /// # Errors
    /// None.
    pub fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// Which tokens are the image, and which name the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLayout {
    /// The image's patches, in raster order.
    pub image: Range<usize>,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Tokens whose rows of the flow are averaged: those of the object's name. None twice.
    pub object_rows: Vec<usize>,
}

impl TokenLayout {
    /// Patches `image` on a grid of `(rows, columns)`, seen from the tokens `object_rows`.
    pub fn new(
        image: Range<usize>,
        grid: (usize, usize),
        object_rows: impl Into<Vec<usize>>,
    ) -> Self {
        TokenLayout { image, grid, object_rows: object_rows.into() }
    }

    /// A span of text as a grid of one row: for attribution, without any image.
    pub fn text(span: Range<usize>, object_rows: impl Into<Vec<usize>>) -> Self {
        let grid = (1, span.len());
        TokenLayout::new(span, grid, object_rows)
    }

    /// Checks the layout in a sequence of `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Config`] for an image without patches or of others than the grid's, tokens that the sequence
    /// lacks, no object row at all, and one that is named twice.
    pub fn validate(&self, tokens: usize) -> Result<()> {
        let (rows, columns) = self.grid;
        let patches = rows.checked_mul(columns).filter(|patches| *patches > 0);
        if patches != Some(self.image.len()) {
            let expected = format!("{rows} x {columns} patches, at least one");
            return Err(Error::config("image", expected, format!("{:?}", self.image)));
        }
        if self.image.end > tokens {
            let expected = format!("within {tokens} tokens");
            return Err(Error::config("image", expected, format!("{:?}", self.image)));
        }
        check_rows(&self.object_rows, tokens)?;
        if self.object_rows.is_empty() {
            return Err(Error::config("object_rows", "at least one token", "none"));
        }
        for (place, row) in self.object_rows.iter().enumerate() {
            if self.object_rows[..place].contains(row) {
                return Err(Error::config(
                    "object_rows",
                    "every token once",
                    format!("{row} twice"),
                ));
            }
        }
        Ok(())
    }
}

/// Checks that tokens are there.
pub(crate) fn check_rows(rows: &[usize], tokens: usize) -> Result<()> {
    match rows.iter().find(|row| **row >= tokens) {
        Some(row) => Err(Error::config("object_rows", format!("within {tokens} tokens"), row)),
        None => Ok(()),
    }
}

/// Entries of each column that a causal mask leaves: `tokens - j`.
pub fn causal_counts(tokens: usize) -> Vec<usize> {
    (0..tokens).map(|column| tokens - column).collect()
}

/// The column factor of counts of unmasked entries (section 2.3): `rho_j = 1 - (count_j - 1) / N`. A column
/// without any entry has the factor of one with a single one, 1: it is 0 anyway.
///
/// # Errors
/// [`Error::Data`] for a column with more entries than there are rows.
pub fn column_factor(counts: &[usize]) -> Result<Vec<f64>> {
    let tokens = counts.len();
    let factor = |count: &usize| {
        if *count > tokens {
            return Err(Error::data("column_counts", format!("at most {tokens}"), count));
        }
        Ok(1.0 - count.saturating_sub(1) as f64 / tokens as f64)
    };
    counts.iter().map(factor).collect()
}
