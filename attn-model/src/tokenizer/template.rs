use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error as Jinja, ErrorKind, Value, context, escape_formatter};
use serde::Serialize;

use super::{Specials, time};
use crate::{Error, Result};

/// Steps that a template may take: loops in a hostile one end.
const FUEL: u64 = 10_000_000;
/// Bytes of a conversation's text.
const MAX_BYTES: usize = 16 << 20;
const NAME: &str = "chat";

/// A parsed chat template: a Jinja template in the dialect of transformers.
///
/// Known are the functions `raise_exception` and `strftime_now` (UTC), the filter `tojson` in Python's
/// spelling, `break` and `continue`, and Python's methods of texts, lists and maps.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    specials: Specials,
}

impl ChatTemplate {
    pub(super) fn new(source: &str, specials: &Specials) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(error)?);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(|out, state, value| {
            let is_list = value.kind() != ValueKind::String;
            if is_list && value.len().is_some_and(|len| len > MAX_BYTES / 2) {
                return Err(Jinja::new(ErrorKind::WriteFailure, too_long()));
            }
            escape_formatter(out, state, value)
        });
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation(source)).map_err(error)?;
        Ok(Self { environment, specials: specials.clone() })
    }

    /// The text of a conversation, with `reply` up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// [`Error::Template`] where the template refuses the conversation or cannot be rendered.
    pub fn render<M: Serialize>(&self, messages: &[M], reply: bool) -> Result<String> {
        self.render_with(messages, reply, ())
    }

    /// The same with further variables, such as `tools` or `enable_thinking`: a map or a struct.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with<M: Serialize>(
        &self,
        messages: &[M],
        reply: bool,
        variables: impl Serialize,
    ) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(error)?;
        let variables = Value::from(Serde(variables));
        let variables = if variables.kind() == ValueKind::Map {
            variables
        } else {
            context! {}
        };
        let own = context! { messages => Serde(messages), add_generation_prompt => reply };
        let specials = Value::from(Serde(&self.specials));
        let mut text = Bounded(Vec::new());
        let all = context! { ..own, ..variables, ..specials };
        template.render_captured_to(all, &mut text).map_err(error)?;
        String::from_utf8(text.0).map_err(|utf8| Error::Template { reason: utf8.to_string() })
    }
}

fn too_long() -> String {
    format!("the text is longer than {MAX_BYTES} bytes")
}

/// Takes [`MAX_BYTES`]: steps do not bound what one of them writes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other(too_long()));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Transformers marks what the assistant says, for training, by a tag that Jinja does not know. As a
/// condition that holds it changes nothing, and white space around it goes as it would.
fn without_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        // The tag ends behind its start: `{%}` is none.
        let Some(end) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(2 + end);
        let word = tag[2..].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => text.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen(word, "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = behind;
    }
    text + rest
}

fn error(error: Jinja) -> Error {
    use std::error::Error as _;
    let reason = format!("{error:#}");
    match error.source() {
        Some(source) => Error::Template { reason: format!("{reason}: {source}") },
        None => Error::Template { reason },
    }
}

fn raise_exception(message: String) -> Result<Value, Jinja> {
    Err(Jinja::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Jinja> {
    let unknown = || Jinja::new(ErrorKind::InvalidOperation, format!("date format {format:?}"));
    time::strftime_now(&format).ok_or_else(unknown)
}

/// JSON as Python's `json.dumps` spells it, without escapes for HTML or non-ASCII characters.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Jinja> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        if options.has(ignored) && ignored != "ensure_ascii" {
            let reason = format!("tojson does not know {ignored}");
            return Err(Jinja::new(ErrorKind::InvalidOperation, reason));
        }
        options.get::<Option<Value>>(ignored)?;
    }
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(value, indent.map(|n| n.min(16)), 0, &mut text)?;
    Ok(Value::from_safe_string(text))
}

/// How deep values may be nested.
const DEPTH: usize = 64;

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Jinja> {
    let invalid = |reason: String| Jinja::new(ErrorKind::BadSerialization, reason);
    if depth > DEPTH {
        return Err(invalid("nested too deep".into()));
    }
    match value.kind() {
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let name = serde_json::to_string(&key.to_string());
                let name = name.map_err(|error| invalid(error.to_string()))?;
                items.push((Some(name), value.get_item(&key)?));
            }
            write_items(['{', '}'], &items, indent, depth, text)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<_> = value.try_iter()?.map(|item| (None, item)).collect();
            write_items(['[', ']'], &items, indent, depth, text)
        }
        _ => {
            let scalar =
                serde_json::to_string(value).map_err(|error| invalid(error.to_string()))?;
            text.push_str(&scalar);
            Ok(())
        }
    }
}

fn write_items(
    [open, close]: [char; 2],
    items: &[(Option<String>, Value)],
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Jinja> {
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent.filter(|_| !items.is_empty()) {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    text.push(open);
    for (i, (name, item)) in items.iter().enumerate() {
        if i > 0 {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(text, depth + 1);
        if let Some(name) = name {
            text.push_str(name);
            text.push_str(": ");
        }
        write_json(item, indent, depth + 1, text)?;
    }
    line(text, depth);
    text.push(close);
    Ok(())
}
