//! Checked access to the keys of a JSON object.

use serde_json::{Map, Value};

use super::check;
use crate::{Error, Result};

/// A JSON object of a file. A key whose value is null counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    pub file: &'a str,
    map: &'a Map<String, Value>,
    /// Where keys are looked up that this object lacks.
    outer: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object();
        let wrong = || Error::format(file, "byte 0", "a JSON object", kind(value));
        Ok(Self { file, map: map.ok_or_else(wrong)?, outer: None })
    }

    /// The object under a key, if there is one.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let map = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
        Ok(Some(Self { file: self.file, map, outer: None }))
    }

    /// The same fields, with those of `outer` where they are absent.
    pub fn or(self, outer: Fields<'a>) -> Self {
        Self { outer: Some(outer.map), ..self }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let present = |map: &'a Map<String, Value>| map.get(key).filter(|value| !value.is_null());
        present(self.map).or_else(|| self.outer.and_then(present))
    }

    /// Whether the key is there, be it with null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "text", Value::as_str)
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", Value::as_u64)
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number that divides, scales or caps something.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.number(key)?.map(|value| check::positive(self.file, key, value)).transpose()
    }

    /// An extent that must be there.
    pub fn extent(&self, key: &str, bound: fn(&str, &str, u64) -> Result<usize>) -> Result<usize> {
        let value = self.unsigned(key)?.ok_or_else(|| self.missing(key))?;
        bound(self.file, key, value)
    }

    pub fn context(&self, key: &str) -> Result<Option<usize>> {
        self.unsigned(key)?.map(|value| check::context(self.file, key, value)).transpose()
    }

    /// A token, or a list of tokens.
    pub fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.typed(key, "a token or a list of tokens", |value| {
            let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            match value {
                Value::Array(values) => values.iter().map(token).collect(),
                one => token(one).map(|id| vec![id]),
            }
        })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    pub fn missing(&self, key: &str) -> Error {
        Error::format(self.file, key, "the key", "none")
    }

    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let got = self.get(key).map_or_else(|| "nothing".into(), kind);
        Error::format(self.file, key, expected, got)
    }

    pub fn unsupported(&self, key: &str, supported: &str) -> Error {
        let got = self.get(key).map_or_else(|| "nothing".into(), kind);
        Error::unsupported(self.file, key, got, supported)
    }
}

/// A value for messages: numbers and words in full, the rest by its kind.
fn kind(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        Value::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        other => other.to_string(),
    }
}
