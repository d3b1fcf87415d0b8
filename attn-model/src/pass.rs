//! How some tokens run, besides which they are.

use std::fmt;

use crate::Observer;

/// Options of one pass of new tokens through a model. Without any, the tokens are a part of a prompt, at the
/// positions behind the last token.
#[derive(Default)]
pub struct Pass<'a> {
    pub(crate) positions: Option<&'a [u32]>,
    pub(crate) observer: Option<&'a mut dyn Observer>,
    pub(crate) is_decode: bool,
}

impl<'a> Pass<'a> {
    /// No options.
    pub fn new() -> Self {
        Pass::default()
    }

    /// Queries and keys are rotated by these positions, one a token. Which keys a token sees depends on
    /// the order of the tokens alone.
    pub fn with_positions(self, positions: &'a [u32]) -> Self {
        Pass { positions: Some(positions), ..self }
    }

    /// With an observer looking on.
    pub fn with_observer(self, observer: &'a mut dyn Observer) -> Self {
        Pass { observer: Some(observer), ..self }
    }

    /// The tokens are a continuation, not a part of a prompt: policies may treat them differently, see
    /// [`Phase`](crate::policy::Phase).
    pub fn decoding(self) -> Self {
        Pass { is_decode: true, ..self }
    }
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("positions", &self.positions)
            .field("is_observed", &self.observer.is_some())
            .field("is_decode", &self.is_decode)
            .finish()
    }
}
