//! What the paper leaves to choose about prompts.

use attn_core::{Error, Result};

/// What a mask does to the map from which the next pair of points is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Refine {
    /// Patches that the mask covers are removed, so that the next pair falls on what was missed.
    #[default]
    Suppress,
    /// Only patches that the mask covers stay, so that the next pair falls on a part of it.
    Keep,
}

/// How points are picked and masks collected.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct PromptConfig {
    /// Patches of at least this value are strong. The map's values go from 0 to 1. The paper gives no
    /// value.
    pub threshold: f64,
    /// How often a mask goes back to the segmenter with the points that gave it.
    pub cascade: usize,
    /// What a mask does to the map.
    pub refine: Refine,
    /// The most pairs that are picked from one map: the first and, as in the paper, two more.
    pub max_iter: usize,
    /// A patch is covered where at least this share of its pixels is in the mask.
    pub cover: f64,
    /// Of two boxes with an intersection over union above this, the one with the lower score goes. The
    /// paper gives no value.
    pub nms: f64,
    /// Whether boxes suppress others of their own name only.
    pub per_label: bool,
    /// Whether the four corner sub-images are searched as well.
    pub multi_scale: bool,
    /// How many questions the recogniser is asked; the paper has 10.
    pub questions: usize,
}

impl Default for PromptConfig {
    /// One view and one question; [`PromptConfig::paper`] has the ensembles.
    fn default() -> Self {
        PromptConfig {
            threshold: 0.5,
            cascade: 1,
            refine: Refine::Suppress,
            max_iter: 3,
            cover: 0.5,
            nms: 0.5,
            per_label: true,
            multi_scale: false,
            questions: 1,
        }
    }
}

impl PromptConfig {
    /// The paper's ensembles: five views and ten questions.
    pub fn paper() -> Self {
        PromptConfig { multi_scale: true, questions: 10, ..PromptConfig::default() }
    }

    /// The same with another threshold.
    pub fn with_threshold(self, threshold: f64) -> Self {
        PromptConfig { threshold, ..self }
    }

    /// The same with another number of rounds in which a mask goes back with its points.
    pub fn with_cascade(self, cascade: usize) -> Self {
        PromptConfig { cascade, ..self }
    }

    /// The same with another use of masks, and at most `max_iter` pairs from a map.
    pub fn with_refine(self, refine: Refine, max_iter: usize) -> Self {
        PromptConfig { refine, max_iter, ..self }
    }

    /// The same with another share from which a patch counts as covered.
    pub fn with_cover(self, cover: f64) -> Self {
        PromptConfig { cover, ..self }
    }

    /// The same with another bound of overlap, within each name or among all.
    pub fn with_nms(self, nms: f64, per_label: bool) -> Self {
        PromptConfig { nms, per_label, ..self }
    }

    /// The same with or without the corner sub-images.
    pub fn with_multi_scale(self, multi_scale: bool) -> Self {
        PromptConfig { multi_scale, ..self }
    }

    /// The same with another number of questions.
    pub fn with_questions(self, questions: usize) -> Self {
        PromptConfig { questions, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a `threshold` or `cover` that is not above 0 and at most 1, an `nms`
    /// outside of 0 to 1, and no pair or no question.
    pub fn validate(&self) -> Result<()> {
        for (arg, share) in [("threshold", self.threshold), ("cover", self.cover)] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(Error::config(arg, "above 0 and at most 1", share));
            }
        }
        if !(0.0..=1.0).contains(&self.nms) {
            return Err(Error::config("nms", "0 to 1", self.nms));
        }
        for (arg, count) in [("max_iter", self.max_iter), ("questions", self.questions)] {
            if count == 0 {
                return Err(Error::config(arg, "at least 1", count));
            }
        }
        Ok(())
    }
}
