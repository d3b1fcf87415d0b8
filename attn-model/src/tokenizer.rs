//! Text to tokens and back, and chat templates.

mod gguf;
mod json;
mod stream;
mod template;
mod time;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;

pub use stream::DecodeStream;
pub use template::ChatTemplate;

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks: "system", "user" or "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A tokenizer with the model's special tokens and chat templates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    specials: Specials,
    /// Templates by name; that of ordinary conversations is called "default".
    templates: Vec<(String, String)>,
}

/// Special tokens as text, as templates use them.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Specials {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unk_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token: Option<String>,
}

impl Tokenizer {
    /// Builds a tokenizer from `tokenizer.json`. Truncation and padding are switched off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the file is none, or its parts do not fit together.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let built = guarded(|| tokenizers::Tokenizer::from_bytes(json))?;
        Self::from_inner(built)
    }

    fn from_inner(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_truncation(None).map_err(Error::tokenizer)?;
        inner.with_padding(None);
        Ok(Self { inner: Arc::new(inner), specials: Specials::default(), templates: Vec::new() })
    }

    /// Tokens of a text. Special tokens that are spelled out in it become themselves; `add_special`
    /// also adds those that the model wants around a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of tokens, special ones included. Bytes that are no UTF-8 become U+FFFD, and tokens that
    /// do not exist, as those that fill up an embedding, become nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false))
    }

    /// The same without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true))
    }

    /// A decoder that takes one token after the other and gives whole characters only.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// Number of tokens, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that is spelled this way, if there is one.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Names of the chat templates, that of ordinary conversations, "default", first.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        self.templates.iter().map(|(name, _)| name.as_str())
    }

    /// A chat template by its name.
    ///
    /// # Errors
    /// [`Error::Template`] where there is none of this name, or it does not parse.
    pub fn template(&self, name: &str) -> Result<ChatTemplate> {
        let found = self.templates.iter().find(|(found, _)| found == name);
        let (_, source) = found.ok_or_else(|| Error::Template {
            reason: format!("there is none of the name {name:?}"),
        })?;
        ChatTemplate::new(source, &self.specials)
    }

    /// A conversation as the text that the model was trained on. `reply` adds what stands in front of
    /// the assistant's next turn. Encode the text without adding special tokens: they are in it.
    ///
    /// # Errors
    /// [`Error::Template`] where there is no template, or it refuses the conversation.
    pub fn chat(&self, messages: &[Message], reply: bool) -> Result<String> {
        self.template("default")?.render(messages, reply)
    }

    /// The contents of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(Error::tokenizer)
    }
}

/// Some damaged files make the library panic; that is an error like others.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Error::tokenizer),
        Err(_) => Err(Error::tokenizer("its parts do not fit together")),
    }
}
