//! `tokenizer_config.json` and `chat_template.jinja`.

use serde_json::{Value, json};

use super::{Specials, Tokenizer};
use crate::{Error, Result};

/// Template of ordinary conversations.
const DEFAULT: &str = "default";

impl Tokenizer {
    /// Takes special tokens and chat templates from `tokenizer_config.json`; `file` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] where a key holds something else than it should.
    pub fn with_config_json(mut self, file: &str, json: &[u8]) -> Result<Self> {
        let bad = |at: &str, expected: &str, got: String| Error::format(file, at, expected, got);
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| bad("contents", "JSON", error.to_string()))?;
        if !value.is_object() {
            return Err(bad("contents", "a JSON object", "something else".into()));
        }
        let token = |key: &str| match &value[key] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Object(token) => match token.get("content") {
                Some(Value::String(text)) => Ok(Some(text.clone())),
                _ => Err(bad(key, "a token with its content", "an object without it".into())),
            },
            other => Err(bad(key, "a token", other.to_string().chars().take(80).collect())),
        };
        self.specials = Specials {
            bos_token: token("bos_token")?,
            eos_token: token("eos_token")?,
            unk_token: token("unk_token")?,
            pad_token: token("pad_token")?,
        };
        let named = |item: &Value| {
            let text = |key: &str| item.get(key).and_then(Value::as_str).map(String::from);
            text("name").zip(text("template"))
        };
        let templates = match &value["chat_template"] {
            Value::Null => Some(Vec::new()),
            Value::String(source) => Some(vec![(DEFAULT.into(), source.clone())]),
            Value::Array(items) => items.iter().map(named).collect(),
            _ => None,
        };
        let templates = templates.ok_or_else(|| {
            let expected = "a template, or a list of templates with name and template";
            bad("chat_template", expected, "something else".into())
        })?;
        for (name, source) in templates {
            self.set_template(&name, source);
        }
        Ok(self)
    }

    /// Takes the contents of `chat_template.jinja` as the template of ordinary conversations.
    pub fn with_template(mut self, source: &str) -> Self {
        self.set_template(DEFAULT, source.into());
        self
    }

    pub(super) fn set_template(&mut self, name: &str, source: String) {
        self.templates.retain(|(found, _)| found != name);
        let at = if name == DEFAULT { 0 } else { self.templates.len() };
        self.templates.insert(at, (name.into(), source));
    }

    /// The contents of `tokenizer_config.json`.
    pub fn config_json(&self) -> Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        let Specials { bos_token, eos_token, unk_token, pad_token } = &self.specials;
        let specials = [
            ("bos_token", bos_token),
            ("eos_token", eos_token),
            ("unk_token", unk_token),
            ("pad_token", pad_token),
        ];
        for (key, token) in specials {
            if let Some(token) = token {
                config[key] = json!(token);
            }
        }
        match self.templates.as_slice() {
            [] => {}
            [(name, source)] if name == DEFAULT => config["chat_template"] = json!(source),
            several => {
                let item = |(name, source): &(_, _)| json!({ "name": name, "template": source });
                config["chat_template"] = several.iter().map(item).collect();
            }
        }
        config
    }
}
