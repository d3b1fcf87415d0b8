use std::path::Path;

use crate::blob::Blob;
use crate::gguf::Gguf;
use crate::{Error, ModelConfig, Result, Tokenizer, Weights};

/// A model's files: a Hugging Face folder or a GGUF file. Weights stay on disk until they are asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Source {
    /// What the model is made of.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    text: TextFiles,
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone)]
enum TextFiles {
    Gguf(Box<Gguf>),
    HuggingFace { tokenizer: Option<Blob>, config: Option<Blob>, template: Option<Blob> },
}

impl Source {
    /// Opens a folder with `config.json` and safetensors files, or a GGUF file. Every tensor of the
    /// configuration is there, in its shape and in a type that is read.
    ///
    /// # Errors
    /// [`Error::Io`] where files are missing; [`Error::Format`] where one is damaged or numbers do not
    /// fit together; [`Error::Unsupported`] for models that are not covered; [`Error::MissingTensor`]
    /// and [`Error::TensorShape`] where configuration and weights do not match.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() { Source::open_folder(path) } else { Source::from_gguf(Blob::open(path)?) }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config = Blob::open(folder.join("config.json"))?;
        let mut parsed = ModelConfig::from_json(config.name(), &all(&config)?)?;
        if let Some(generation) = optional(folder, "generation_config.json")? {
            parsed = parsed.with_generation_json(generation.name(), &all(&generation)?)?;
        }
        let text = TextFiles::HuggingFace {
            tokenizer: optional(folder, "tokenizer.json")?,
            config: optional(folder, "tokenizer_config.json")?,
            template: optional(folder, "chat_template.jinja")?,
        };
        Source::checked(parsed, Weights::open_folder(folder)?, text)
    }

    /// A GGUF file, or one in memory.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_gguf(blob: Blob) -> Result<Self> {
        let gguf = Gguf::read(blob)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let weights = Weights::from_gguf(&gguf, &config)?;
        Source::checked(config, weights, TextFiles::Gguf(Box::new(gguf)))
    }

    fn checked(config: ModelConfig, weights: Weights, text: TextFiles) -> Result<Self> {
        weights.check(&config)?;
        Ok(Self { config, weights, text })
    }

    /// Builds the tokenizer; none where a folder has no `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], [`Error::Format`] or [`Error::Unsupported`] where it cannot be built from
    /// what the files say.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let (tokenizer, config, template) = match &self.text {
            TextFiles::Gguf(gguf) => return Tokenizer::from_gguf(gguf).map(Some),
            TextFiles::HuggingFace { tokenizer, config, template } => (tokenizer, config, template),
        };
        let Some(tokenizer) = tokenizer else {
            return Ok(None);
        };
        let mut built = Tokenizer::from_json(&all(tokenizer)?)?;
        if let Some(config) = config {
            built = built.with_config_json(config.name(), &all(config)?)?;
        }
        if let Some(template) = template {
            let source = String::from_utf8(all(template)?);
            let utf8 = |error| Error::format(template.name(), "contents", "UTF-8", error);
            built = built.with_template(&source.map_err(utf8)?);
        }
        Ok(Some(built))
    }
}

fn all(blob: &Blob) -> Result<Vec<u8>> {
    blob.bytes(0, blob.len())
}

fn optional(folder: &Path, name: &str) -> Result<Option<Blob>> {
    let path = folder.join(name);
    path.is_file().then(|| Blob::open(path)).transpose()
}
