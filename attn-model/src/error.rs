//! Errors of loading and running models.

use std::path::PathBuf;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a model or its files.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument was wrong.
    #[error(transparent)]
    Core(#[from] attn_core::Error),
    /// Something went wrong on the way to, on, or back from a device.
    #[error(transparent)]
    Gpu(#[from] attn_wgpu::Error),
    /// The system could not read or write a file.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is damaged, or does not say what its format asks for.
    #[error("{file}: {at}: expected {expected}, got {got}")]
    Format {
        /// The file.
        file: String,
        /// The key, the name of the tensor, or the byte where it was found.
        at: String,
        /// What would have been accepted.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A file is sound, but asks for something that this crate does not do.
    #[error("{file}: {what} {got} is not supported, only {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key, or the kind of thing.
        what: String,
        /// What the file asks for.
        got: String,
        /// What would have been accepted.
        supported: String,
    },
    /// There is no such tensor.
    #[error("{file}: no tensor `{name}`")]
    MissingTensor {
        /// The file or folder.
        file: String,
        /// Name of the tensor, as Hugging Face files spell it.
        name: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{file}: tensor `{name}` has shape {got:?}, expected {expected:?}")]
    TensorShape {
        /// The file or folder.
        file: String,
        /// Name of the tensor.
        name: String,
        /// The shape that was asked for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// The tokenizer could not be built, or refused a text or tokens.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What the tokenizer said.
        reason: String,
    },
    /// A chat template does not parse, does not render, or refuses the conversation.
    #[error("chat template: {reason}")]
    Template {
        /// What the template engine or the template said.
        reason: String,
    },
}

impl Error {
    /// [`Error::Io`] about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Error::Io { path: path.into(), reason: reason.to_string() }
    }

    /// [`Error::Format`] of `file`, at a key, a name or a byte.
    pub(crate) fn format(
        file: &str,
        at: impl ToString,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        let (file, at, got) = (file.to_owned(), at.to_string(), got.to_string());
        Error::Format { file, at, expected: expected.into(), got }
    }

    /// [`Error::Unsupported`] of `file`.
    pub(crate) fn unsupported(
        file: &str,
        what: impl ToString,
        got: impl ToString,
        supported: impl Into<String>,
    ) -> Self {
        let (what, got) = (what.to_string(), got.to_string());
        Error::Unsupported { file: file.to_owned(), what, got, supported: supported.into() }
    }

    pub(crate) fn tokenizer(reason: impl ToString) -> Self {
        Error::Tokenizer { reason: reason.to_string() }
    }
}
