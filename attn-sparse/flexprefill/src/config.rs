//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// How many vertical and slash lines a head gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum BudgetRule {
    /// As many blocks of keys (and diagonals of blocks) as hold a share `gamma` of the probed mass: what
    /// the paper guarantees.
    #[default]
    BlockCover,
    /// The authors' code: as many single keys as stay within `gamma`, divided by
    /// [`Config::line_divisor`]. Where heavy keys are scattered over blocks it keeps less than `gamma`.
    TokensDiv,
}

/// The paper's parameters. Lengths are in tokens.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Tokens of a block, b.
    pub block: usize,
    /// Share of the attention mass that selected blocks are to hold; above 1 selects all.
    pub gamma: f64,
    /// Heads whose pooled attention is closer than this to what was probed (square root of the
    /// Jensen-Shannon divergence, at most `sqrt(ln 2)`) are query-aware.
    pub tau: f64,
    /// Vertical lines, and slash lines, at least.
    pub min_budget: Option<usize>,
    /// Vertical lines, and slash lines, at most.
    pub max_budget: Option<usize>,
    /// How lines are counted.
    pub budget_rule: BudgetRule,
    /// Keys that [`BudgetRule::TokensDiv`] counts as one line; the block where it is not set, 128 in the
    /// authors' code.
    pub line_divisor: Option<usize>,
    /// Whether a slash line takes both diagonals of blocks that it crosses.
    pub slash_both: bool,
    /// Factor of `q.k` in the attention, `1 / sqrt(D)` where it is not set. Selection always takes
    /// `1 / sqrt(D)`.
    pub scale: Option<f64>,
}

impl Default for Config {
    /// The paper's: blocks of 128, gamma 0.95, tau 0.1, at least 1,024 tokens of each kind of line.
    fn default() -> Self {
        Config {
            block: 128,
            gamma: 0.95,
            tau: 0.1,
            min_budget: Some(1024),
            max_budget: None,
            budget_rule: BudgetRule::BlockCover,
            line_divisor: None,
            slash_both: false,
            scale: None,
        }
    }
}

impl Config {
    /// The paper's parameters.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with blocks of `block` tokens.
    pub fn with_block(self, block: usize) -> Self {
        Config { block, ..self }
    }

    /// The same with another share of the mass.
    pub fn with_gamma(self, gamma: f64) -> Self {
        Config { gamma, ..self }
    }

    /// The same with another threshold of the divergence.
    pub fn with_tau(self, tau: f64) -> Self {
        Config { tau, ..self }
    }

    /// The same with other bounds of the lines.
    pub fn with_budget(self, min: Option<usize>, max: Option<usize>) -> Self {
        Config { min_budget: min, max_budget: max, ..self }
    }

    /// The same with another way to count lines.
    pub fn with_rule(self, budget_rule: BudgetRule) -> Self {
        Config { budget_rule, ..self }
    }

    /// The same with slash lines of both diagonals.
    pub fn with_slash_both(self) -> Self {
        Config { slash_both: true, ..self }
    }

    /// The same with another factor of `q.k` in the attention.
    pub fn with_scale(self, scale: f64) -> Self {
        Config { scale: Some(scale), ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a block or a divisor of 0, a block above 2^20, a `gamma` that is not
    /// positive, a `tau` or a `scale` that is not a number, and bounds of which the lower is larger.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1 << 20).contains(&self.block) {
            return Err(Error::config("block", "1 to 2^20", self.block));
        }
        if self.gamma.is_nan() || self.gamma <= 0.0 {
            return Err(Error::config("gamma", "a positive number", self.gamma));
        }
        if self.tau.is_nan() {
            return Err(Error::config("tau", "a number", self.tau));
        }
        if self.line_divisor == Some(0) {
            return Err(Error::config("line_divisor", "at least 1", 0));
        }
        if let (Some(min), Some(max)) = (self.min_budget, self.max_budget)
            && min > max
        {
            return Err(Error::config("min_budget", format!("at most max_budget, {max}"), min));
        }
        match self.scale {
            Some(scale) if !scale.is_finite() => Err(Error::config("scale", "a number", scale)),
            _ => Ok(()),
        }
    }

    /// Lines of each kind at least, in blocks.
    pub(crate) fn min_blocks(&self) -> usize {
        self.min_budget.unwrap_or(0).max(1).div_ceil(self.block)
    }

    /// Lines of each kind at most, in blocks, of `blocks`.
    pub(crate) fn max_blocks(&self, blocks: usize) -> usize {
        self.max_budget.map_or(blocks, |max| max.div_ceil(self.block).min(blocks))
    }

    /// Whether the attention of `queries` queries at the end of `keys` keys is dense: where keys are so few
    /// that the lines would take most of them (step 0 of the paper), and for a part of a prompt that is no
    /// longer than the probe.
    pub fn is_dense(&self, queries: usize, keys: usize) -> bool {
        let short = self.min_blocks().max(2).saturating_mul(self.block);
        keys <= short.max(1) || queries <= self.block
    }
}
