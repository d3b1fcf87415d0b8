//! From a map to prompts: points, refinement, ensembles, suppression of duplicates (sections 2.5 to
//! 2.7 of the method).
//!
//! A map is thresholded, and the largest connected region of strong patches gives one point on the
//! object and one beside it ([`PatchPair`]). A [`Segmenter`](crate::segment::Segmenter) turns the pair
//! into a mask, which is taken out of the map, until no strong patch is left ([`refine()`]). Several
//! views of the image ([`views()`]) and several questions give more masks; [`nms()`] leaves one per
//! object.

mod boxes;
mod config;
mod ensemble;
mod points;
mod refine;
mod region;

pub(crate) use boxes::falling;
pub use boxes::{PixelBox, match_boxes, nms};
pub use config::{PromptConfig, Refine};
pub(crate) use ensemble::normal_name;
pub use ensemble::{QUESTIONS, View, union_names, views};
pub use points::{PatchPair, Point, patch_centre, patch_of};
pub use refine::{Found, refine};
pub use region::{Components, strong};
