//! Test support for the whole workspace (feature `testing`).
//!
//! * [`Values`], [`uniform`], [`normal`], [`fill`], [`plant`]: random data of which any element can
//!   be made alone.
//! * [`HostInputs`], [`Problem`]: `q`, `k`, `v` on the host, and problems by name.
//! * [`strategies`]: proptest strategies of shapes, masks and values.
//! * [`plans`]: strategies of sparse plans, and plans by name.
//! * [`Errors`], [`Budget`], [`simple_f32`], [`simple_plan_f32`]: how far a result may be from the f64 reference.
//! * [`golden`], [`Capture`], [`TensorFile`]: vectors from files.

mod capture;
mod errors;
pub mod golden;
mod host;
pub mod plans;
mod problems;
mod random;
mod simple;
mod simple_plan;
pub mod strategies;
mod tensor_file;
mod values;

pub use capture::Capture;
pub use errors::{Budget, Errors, compare};
pub use host::{HostArrays, HostInputs};
pub use problems::{Problem, by_name, problems};
pub use random::{bits, normal, uniform};
pub use simple::{SimpleGrads, SimpleOutput, simple_f32, simple_f32_backward};
pub use simple_plan::{simple_plan_f32, simple_plan_f32_backward};
pub use tensor_file::TensorFile;
pub use values::{Values, fill, plant};
