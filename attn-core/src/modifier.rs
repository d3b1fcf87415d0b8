//! Functions of a logit and its place, written in WGSL and as closures.

mod examples;

use std::fmt;
use std::sync::Arc;

pub use examples::alibi_slopes;

use crate::{Error, Result};

/// What the body of a [`Modifier`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModifierKind {
    /// The new logit, an `f32`. One of at most -1e30 counts as masked.
    Score,
    /// A `bool`: whether the pair is kept. The logit stays what it was.
    Mask,
}

/// A parameter of a [`Modifier`]. Parameters get no gradient.
#[derive(Debug, Clone, PartialEq)]
pub enum ModifierParam {
    /// One number.
    Scalar(f32),
    /// Numbers by index; an index beyond either end reads the number at that end.
    Table(Vec<f32>),
}

/// Where a logit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ModifierArgs {
    /// Batch entry.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Position of the query, relative to its own document ([`crate::Mask::place`]). Negative where
    /// there are more queries than keys.
    pub position: i64,
    /// Index of the key, relative to its own document.
    pub key: usize,
}

/// A function on the host: of the score and its place.
pub type ModifierFn = dyn Fn(f64, &ModifierArgs) -> f64 + Send + Sync;

/// A function applied to every logit after scale and soft-cap and before the mask: a bias, a factor
/// or another mask.
///
/// The kernels compile [`Modifier::body`], the body of a WGSL function that sees
///
/// ```text
/// score: f32, batch: u32, head: u32, position: i32, key: i32
/// ```
///
/// ([`ModifierArgs`] says what they count), a scalar parameter by its name, and a table as a
/// function `name(i: i32) -> f32` with clamped index. The body of a score modifier returns the new
/// logit, that of a mask modifier a `bool`. A score modifier that is to be differentiated has a
/// second body that sees the same and returns the derivative of the result by `score`.
///
/// The f64 reference calls closures instead ([`Modifier::with_host`],
/// [`Modifier::with_host_derivative`]); it is up to their author that they say the same as the
/// bodies.
///
/// ```
/// use attn_core::Modifier;
///
/// let near = Modifier::mask("near", "return f32(abs(position - key)) <= radius;")
///     .with_scalar("radius", 3.0)
///     .with_host(|_, at| f64::from(at.position.abs_diff(at.key as i64) <= 3));
/// assert!(near.validate().is_ok());
/// ```
#[derive(Clone)]
pub struct Modifier {
    name: String,
    kind: ModifierKind,
    body: String,
    derivative: Option<String>,
    params: Vec<(String, ModifierParam)>,
    host: Option<Arc<ModifierFn>>,
    host_derivative: Option<Arc<ModifierFn>>,
}

impl Modifier {
    /// A score modifier: `body` returns the new logit.
    pub fn score(name: impl Into<String>, body: impl Into<String>) -> Self {
        Modifier::new(name.into(), ModifierKind::Score, body.into())
    }

    /// A mask modifier: `body` returns whether the pair is kept.
    pub fn mask(name: impl Into<String>, body: impl Into<String>) -> Self {
        Modifier::new(name.into(), ModifierKind::Mask, body.into())
    }

    fn new(name: String, kind: ModifierKind, body: String) -> Self {
        Modifier {
            name,
            kind,
            body,
            derivative: None,
            params: Vec::new(),
            host: None,
            host_derivative: None,
        }
    }

    /// The same with a WGSL body for the derivative of the result by the score. A mask modifier
    /// needs none: the derivative of a kept logit is 1.
    pub fn with_derivative(mut self, body: impl Into<String>) -> Self {
        self.derivative = Some(body.into());
        self
    }

    /// The same with one more parameter, a number.
    pub fn with_scalar(mut self, name: impl Into<String>, value: f32) -> Self {
        self.params.push((name.into(), ModifierParam::Scalar(value)));
        self
    }

    /// The same with one more parameter, a table.
    pub fn with_table(mut self, name: impl Into<String>, values: Vec<f32>) -> Self {
        self.params.push((name.into(), ModifierParam::Table(values)));
        self
    }

    /// The same with the function that the f64 reference calls. A score modifier's returns the new
    /// logit; a mask modifier's returns 0 to mask, and anything else to keep.
    pub fn with_host(
        mut self,
        f: impl Fn(f64, &ModifierArgs) -> f64 + Send + Sync + 'static,
    ) -> Self {
        self.host = Some(Arc::new(f));
        self
    }

    /// The same with the derivative that the f64 reference calls.
    pub fn with_host_derivative(
        mut self,
        f: impl Fn(f64, &ModifierArgs) -> f64 + Send + Sync + 'static,
    ) -> Self {
        self.host_derivative = Some(Arc::new(f));
        self
    }

    /// Name for messages and reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the body returns.
    pub fn kind(&self) -> ModifierKind {
        self.kind
    }

    /// The body of the WGSL function.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The body of the WGSL function that returns the derivative of the result by the score.
    pub fn derivative(&self) -> Option<&str> {
        self.derivative.as_deref()
    }

    /// The parameters in the order in which they were given.
    pub fn params(&self) -> &[(String, ModifierParam)] {
        &self.params
    }

    /// The function on the host.
    pub fn host(&self) -> Option<&ModifierFn> {
        self.host.as_deref()
    }

    /// Its derivative by the score.
    pub fn host_derivative(&self) -> Option<&ModifierFn> {
        self.host_derivative.as_deref()
    }

    /// Checks the parameters. Bodies, and names that are words of WGSL, are left to its compiler.
    ///
    /// # Errors
    /// [`Error::Config`] where a name is not of the form `[a-z][a-z0-9_]*`, is an argument of the
    /// body or comes twice, or where a table is empty.
    pub fn validate(&self) -> Result<()> {
        for (index, (name, param)) in self.params.iter().enumerate() {
            let refuse = |expected| {
                let expected = format!("{expected} in modifier {}", self.name);
                Err(Error::config("modifier", expected, format!("parameter `{name}`")))
            };
            if !is_identifier(name) {
                return refuse("a parameter name of the form [a-z][a-z0-9_]*");
            }
            if ARGUMENTS.contains(&name.as_str()) {
                return refuse("a parameter name that is not an argument");
            }
            if self.params[..index].iter().any(|(other, _)| other == name) {
                return refuse("parameter names that differ");
            }
            if matches!(param, ModifierParam::Table(values) if values.is_empty()) {
                return refuse("a table of at least one number");
            }
        }
        Ok(())
    }
}

const ARGUMENTS: [&str; 5] = ["score", "batch", "head", "position", "key"];

fn is_identifier(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(rest)
}

impl fmt::Debug for Modifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Modifier")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("body", &self.body)
            .field("derivative", &self.derivative)
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

/// Equal in all data, and with the very same closures.
impl PartialEq for Modifier {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<ModifierFn>>, b: &Option<Arc<ModifierFn>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.name == other.name
            && self.kind == other.kind
            && self.body == other.body
            && self.derivative == other.derivative
            && self.params == other.params
            && same(&self.host, &other.host)
            && same(&self.host_derivative, &other.host_derivative)
    }
}
