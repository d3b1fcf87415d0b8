//! The streaming form: a state of fixed size.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array4, ArrayView4, Ix0, arr0};

use super::{Inputs, forward_chunked};
use crate::Config;

/// What a layer keeps between calls, whatever the number of tokens before.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    kv: Array4<f64>,
    position: usize,
}

/// Names in a file, and what it is.
const KIND: &str = "lightning state";
const KV: &str = "kv";
const POSITION: &str = "position";

impl State {
    /// Before the first token: zeros `[batch, heads, dim_qk, dim_v]`. With [`super::lrpe`] `dim_qk` is
    /// twice that of the queries before it.
    pub fn new(batch: usize, heads: usize, dim_qk: usize, dim_v: usize) -> Self {
        State { kv: Array4::zeros((batch, heads, dim_qk, dim_v)), position: 0 }
    }

    /// Behind `position` tokens that led to `kv` `[batch, heads, dim_qk, dim_v]`.
    pub fn from_kv(kv: Array4<f64>, position: usize) -> Self {
        State { kv, position }
    }

    /// The sums of decayed products of keys and values, `[batch, heads, dim_qk, dim_v]`.
    pub fn kv(&self) -> ArrayView4<'_, f64> {
        self.kv.view()
    }

    /// Position of the next token: the number of tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        self.kv.len() * size_of::<f64>()
    }

    /// Writes a safetensors file with the arrays `kv` and `position` in f64.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let position = arr0(self.position as f64);
        ArrayFile::new(KIND).with(KV, self.kv.view()).with(POSITION, position.view()).write(path)
    }

    /// Reads what [`State::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read or does not hold a state.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let position = file.get::<Ix0>(POSITION)?.into_scalar();
        if !(0.0..=2_f64.powi(53)).contains(&position) || position.fract() != 0.0 {
            return Err(Error::file(
                path,
                format!("`position` is {position}, expected a number of tokens"),
            ));
        }
        Ok(State { kv: file.get(KV)?, position: position as usize })
    }
}

/// The output of a sequence from its start, `[batch, heads, tokens, dim_v]`, and the state behind it.
///
/// # Errors
/// As [`super::forward`]. Where `inputs.kv` is given, use [`decode`] on [`State::from_kv`].
pub fn prefill(inputs: Inputs<'_>, config: &Config) -> Result<(Array4<f64>, State)> {
    refuse_state(inputs)?;
    let output = forward_chunked(inputs, config)?;
    Ok((output.out, State { kv: output.kv, position: inputs.q.dim().2 }))
}

/// The output of the next tokens, one or more, `[batch, heads, new, dim_v]`. Where the call fails the
/// state is as before.
///
/// # Errors
/// As [`super::forward`], and where the state is of other extents.
pub fn decode(state: &mut State, inputs: Inputs<'_>, config: &Config) -> Result<Array4<f64>> {
    refuse_state(inputs)?;
    let [q, k, v] = [inputs.q.view(), inputs.k.view(), inputs.v.view()];
    let output = forward_chunked(Inputs::new(q, k, v).with_state(state.kv.view()), config)?;
    state.kv = output.kv;
    state.position += inputs.q.dim().2;
    Ok(output.out)
}

fn refuse_state(inputs: Inputs<'_>) -> Result<()> {
    match inputs.kv {
        None => Ok(()),
        Some(_) => Err(Error::config("kv", "none: the state holds it", "some")),
    }
}
