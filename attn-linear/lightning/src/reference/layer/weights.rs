//! What a layer learns.

use std::path::Path;

use attn_core::{Error, Result};
use ndarray::Array2;

use crate::reference::tensors::Tensors;
use crate::reference::{Sglu, expect};

/// Weights of a layer; those of linear maps are `[out, in]`, without a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Queries, keys, values and gate below each other, `[4 hid, d_model]`.
    pub w_qkvu: Array2<f64>,
    /// Out of attention, `[d_model, hid]`.
    pub w_out: Array2<f64>,
    /// One factor of the gated linear unit, `[glu_dim, d_model]`.
    pub w_v: Array2<f64>,
    /// The other, `[glu_dim, d_model]`.
    pub w_u: Array2<f64>,
    /// Out of the gated linear unit, `[d_model, glu_dim]`.
    pub w_o: Array2<f64>,
    /// Angles of the position embedding, `[heads, dim]`; the paper has them in the first layer alone.
    pub theta: Option<Array2<f64>>,
}

impl Weights {
    /// Reads the tensors `w_qkvu`, `w_out`, `w_v`, `w_u`, `w_o` and, where it is there, `theta`, each
    /// with `prefix` before its name, from a safetensors file. They may be f16, bf16, f32 or f64.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read, or a tensor is missing or not a matrix of
    /// floating-point numbers.
    pub fn load(path: impl AsRef<Path>, prefix: &str) -> Result<Self> {
        let file = Tensors::read(path.as_ref())?;
        let read = |name: &str| file.array(&format!("{prefix}{name}"));
        let theta = file.contains(&format!("{prefix}theta"))?.then(|| read("theta"));
        Ok(Weights {
            w_qkvu: read("w_qkvu")?,
            w_out: read("w_out")?,
            w_v: read("w_v")?,
            w_u: read("w_u")?,
            w_o: read("w_o")?,
            theta: theta.transpose()?,
        })
    }

    /// Elements of a token.
    pub fn d_model(&self) -> usize {
        self.w_qkvu.ncols()
    }

    pub(super) fn sglu(&self) -> Sglu<'_> {
        Sglu { w_v: self.w_v.view(), w_u: self.w_u.view(), w_o: self.w_o.view() }
    }

    /// Checks that they fit together, and tells `hid`.
    pub(crate) fn check(&self, heads: usize) -> Result<usize> {
        let (rows, d_model) = self.w_qkvu.dim();
        // Each part goes to all heads in equal shares.
        let (hidden, rest) = (rows / 4, rows % 4);
        if rest != 0 || !hidden.is_multiple_of(heads) {
            let expected = format!("rows of 4 parts of {heads} heads");
            return Err(Error::shape("w_qkvu", expected, self.w_qkvu.shape()));
        }
        expect("w_out", self.w_out.shape(), &[d_model, hidden])?;
        if let Some(theta) = &self.theta {
            expect("theta", theta.shape(), &[heads, hidden / heads])?;
        }
        self.sglu().check(d_model)?;
        Ok(hidden)
    }
}
