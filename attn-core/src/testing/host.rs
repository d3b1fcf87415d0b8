use ndarray::{Array1, Array4};

use super::values::{Values, fill};
use crate::{AttentionShape, Error, Result, dense};

/// Queries, keys, values and perhaps sinks in f32, contiguous, ready to be uploaded.
#[derive(Debug, Clone, PartialEq)]
pub struct HostInputs {
    /// Extents.
    pub shape: AttentionShape,
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: Vec<f32>,
    /// Keys `[batch, heads_kv, keys, dim_qk]`.
    pub k: Vec<f32>,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: Vec<f32>,
    /// One more logit for every row of a query head `[heads]`.
    pub sinks: Option<Vec<f32>>,
}

impl HostInputs {
    /// Random inputs without sinks: `q`, `k` and `v` are streams 0, 1 and 2 of `seed`.
    pub fn random(shape: AttentionShape, seed: u64, values: Values) -> Self {
        let tensor = |stream, shape: [usize; 4]| fill(seed, stream, values, shape.iter().product());
        HostInputs {
            shape,
            q: tensor(0, shape.q()),
            k: tensor(1, shape.k()),
            v: tensor(2, shape.v()),
            sinks: None,
        }
    }

    /// The same with sinks: normal numbers, stream 3 of `seed`.
    pub fn with_random_sinks(mut self, seed: u64) -> Self {
        self.sinks = Some(fill(seed, 3, Values::Normal, self.shape.heads));
        self
    }

    /// The same numbers in f64, for the reference.
    ///
    /// # Errors
    /// [`Error::Shape`] where a vector has not as many elements as `shape` says.
    pub fn to_f64(&self) -> Result<HostArrays> {
        if let Some(sinks) = self.sinks.as_ref().filter(|sinks| sinks.len() != self.shape.heads) {
            return Err(Error::shape("sinks", format!("[{}]", self.shape.heads), &[sinks.len()]));
        }
        Ok(HostArrays {
            q: array("q", self.shape.q(), &self.q)?,
            k: array("k", self.shape.k(), &self.k)?,
            v: array("v", self.shape.v(), &self.v)?,
            sinks: self.sinks.as_ref().map(|s| s.iter().map(|&x| f64::from(x)).collect()),
        })
    }

    /// The first `tokens` queries and keys of every head (all where there are not as many).
    pub fn truncated(&self, tokens: usize) -> Self {
        let shape = AttentionShape {
            queries: self.shape.queries.min(tokens),
            keys: self.shape.keys.min(tokens),
            ..self.shape
        };
        let cut = |data: &[f32], [.., full, dim]: [usize; 4], [.., kept, _]: [usize; 4]| {
            // Chunks of 0 elements are not allowed; an empty tensor has no chunk at all.
            data.chunks((full * dim).max(1))
                .flat_map(|head| head.iter().take(kept * dim))
                .copied()
                .collect()
        };
        HostInputs {
            shape,
            q: cut(&self.q, self.shape.q(), shape.q()),
            k: cut(&self.k, self.shape.k(), shape.k()),
            v: cut(&self.v, self.shape.v(), shape.v()),
            sinks: self.sinks.clone(),
        }
    }
}

/// Queries, keys, values and perhaps sinks in f64, for the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct HostArrays {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: Array4<f64>,
    /// Keys `[batch, heads_kv, keys, dim_qk]`.
    pub k: Array4<f64>,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: Array4<f64>,
    /// One more logit for every row of a query head `[heads]`.
    pub sinks: Option<Array1<f64>>,
}

impl HostArrays {
    /// Views of all, as the reference takes them.
    pub fn view(&self) -> dense::Inputs<'_> {
        let inputs = dense::Inputs::new(self.q.view(), self.k.view(), self.v.view());
        dense::Inputs { sinks: self.sinks.as_ref().map(|sinks| sinks.view()), ..inputs }
    }
}

fn array(arg: &'static str, shape: [usize; 4], data: &[f32]) -> Result<Array4<f64>> {
    let data: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
    let len = data.len();
    Array4::from_shape_vec(shape, data).map_err(|_| Error::shape(arg, format!("{shape:?}"), &[len]))
}
