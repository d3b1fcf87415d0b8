//! The error type of everything that runs on the host.

use std::path::PathBuf;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was wrong with a call: the argument by name, what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong rank or extents, or extents of two tensors do not fit together.
    #[error("`{arg}` has shape {got:?}, expected {expected}")]
    Shape {
        /// Name of the argument.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has an element type that the operation does not take.
    #[error("`{arg}` has element type {got}, expected {expected}")]
    Dtype {
        /// Name of the argument.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// The element type that came.
        got: String,
    },
    /// A hyper-parameter is outside its range, or contradicts another one.
    #[error("`{arg}` is {got}, expected {expected}")]
    Config {
        /// Name of the parameter.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// The contents of an argument are not usable (offsets that fall, indices out of range, ..).
    #[error("`{arg}` holds {got}, expected {expected}")]
    Data {
        /// Name of the argument.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A file could not be read, or its contents are not what its name promises.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl Error {
    /// [`Error::Shape`] of argument `arg`.
    pub fn shape(arg: &'static str, expected: impl Into<String>, got: &[usize]) -> Self {
        Error::Shape { arg, expected: expected.into(), got: got.to_vec() }
    }

    /// [`Error::Config`] of parameter `arg`.
    pub fn config(arg: &'static str, expected: impl Into<String>, got: impl ToString) -> Self {
        Error::Config { arg, expected: expected.into(), got: got.to_string() }
    }

    /// [`Error::Data`] in argument `arg`.
    pub fn data(arg: &'static str, expected: impl Into<String>, got: impl ToString) -> Self {
        Error::Data { arg, expected: expected.into(), got: got.to_string() }
    }

    /// [`Error::File`] about `path`.
    pub fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Error::File { path: path.into(), reason: reason.to_string() }
    }
}
