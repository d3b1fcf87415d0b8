//! The streaming form: a state of fixed size.

use std::path::Path;

use attn_core::{Error, Result};
use ndarray::{Array4, ArrayView4};

use super::tensors::{self, Tensors};
use super::{Inputs, forward_chunked};
use crate::Config;

/// What a layer keeps between calls, whatever the number of tokens before.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    kv: Array4<f64>,
    position: usize,
}

/// Names in a file.
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

    /// Writes a safetensors file with the tensor `kv` in f64 and the metadata `position`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let metadata = [(POSITION.to_owned(), self.position.to_string())].into();
        tensors::write(path.as_ref(), &[(KV, self.kv.view().into_dyn())], metadata)
    }

    /// Reads what [`State::save`] wrote; floating-point numbers of any size are welcome.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read or does not hold a state.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Tensors::read(path)?;
        let kv = file.array(KV)?;
        let position = file.metadata(POSITION).and_then(|text| text.parse().ok());
        let position = position.ok_or_else(|| Error::file(path, "metadata has no `position`"))?;
        Ok(State { kv, position })
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
