//! A tokenizer from GGUF metadata.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Specials, Tokenizer};
use crate::gguf::Gguf;
use crate::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Kinds of tokens: plain, special, and user-defined ones that are found in a text before it is split.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes: byte-level BPE with digits apart
    /// (`tokenizer.ggml.model` "gpt2", `tokenizer.ggml.pre` "smollm").
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other tokenizers; [`Error::Format`] where keys are missing or do not
    /// fit together; [`Error::Tokenizer`] where merges name tokens that are not there.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        only(gguf, MODEL, "gpt2")?;
        only(gguf, PRE, "smollm")?;
        for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"] {
            if gguf.bool(key)? == Some(true) {
                return Err(Error::unsupported(gguf.name(), key, true, "false"));
            }
        }
        let tokens = required(gguf, TOKENS)?;
        let vocabulary = vocabulary(gguf, tokens)?;
        let added = added(gguf, tokens)?;
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Digits", "individual_digits": true },
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": false,
                        "trim_offsets": true,
                        "use_regex": true,
                    },
                ],
            },
            "post_processor": null,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": true,
                "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": merges(gguf)?,
            },
        });
        let mut tokenizer = Self::from_json(json.to_string().as_bytes())?;
        let special = |name: &str| special(gguf, name, tokens);
        tokenizer.specials = Specials {
            bos_token: special("bos")?,
            eos_token: special("eos")?,
            unk_token: special("unknown")?,
            pad_token: special("padding")?,
        };
        if let Some(source) = gguf.text(TEMPLATE)? {
            tokenizer.set_template("default", source.into());
        }
        Ok(tokenizer)
    }
}

fn only(gguf: &Gguf, key: &str, supported: &str) -> Result<()> {
    match gguf.text(key)? {
        Some(value) if value == supported => Ok(()),
        Some(value) => Err(Error::unsupported(gguf.name(), key, value, supported)),
        None => Err(Error::format(gguf.name(), key, "the key", "none")),
    }
}

fn required<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a [String]> {
    gguf.texts(key)?.ok_or_else(|| Error::format(gguf.name(), key, "the key", "none"))
}

fn vocabulary(gguf: &Gguf, tokens: &[String]) -> Result<Map<String, Value>> {
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.clone(), json!(id)).is_some() {
            let got = format!("{token:?} twice");
            return Err(Error::format(gguf.name(), TOKENS, "each token once", got));
        }
    }
    Ok(vocabulary)
}

/// Tokens that are found in a text before it is split.
fn added(gguf: &Gguf, tokens: &[String]) -> Result<Vec<Value>> {
    let types = gguf.integers(TYPES)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        let expected = format!("{} types, one for each token", tokens.len());
        return Err(Error::format(gguf.name(), TYPES, expected, types.len()));
    }
    let known = BTreeSet::from([NORMAL, CONTROL, USER_DEFINED]);
    if let Some(kind) = types.iter().find(|kind| !known.contains(kind)) {
        return Err(Error::unsupported(gguf.name(), TYPES, kind, "1, 3 and 4"));
    }
    let found = types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| **kind != NORMAL);
    let entry = |(id, (kind, token)): (usize, (&u64, &String))| {
        json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": *kind == CONTROL,
        })
    };
    Ok(found.map(entry).collect())
}

fn merges(gguf: &Gguf) -> Result<Vec<[&str; 2]>> {
    let pair = |merge: &'_ String| merge.split_once(' ').is_some_and(|(_, b)| !b.contains(' '));
    let merges = required(gguf, MERGES)?;
    if let Some(merge) = merges.iter().find(|merge| !pair(merge)) {
        let expected = "two tokens with one space between";
        return Err(Error::format(gguf.name(), MERGES, expected, format!("{merge:?}")));
    }
    Ok(merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(a, b)| [a, b]).collect())
}

fn special(gguf: &Gguf, name: &str, tokens: &[String]) -> Result<Option<String>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = gguf.unsigned(&key)? else {
        return Ok(None);
    };
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id)).cloned();
    let expected = || format!("a token below {}", tokens.len());
    token.map(Some).ok_or_else(|| Error::format(gguf.name(), key, expected(), id))
}
