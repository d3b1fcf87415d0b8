//! Weight matrices on a device, dense or packed, and products with them.

use attn_wgpu::embedding::gather_rows;
use attn_wgpu::matmul::{Epilogue, matmul_into, matmul_with};
use attn_wgpu::packed::{self, Packed};
use attn_wgpu::{DType, Tensor};

use crate::Result;

/// A linear map, `y = x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// `x W^T + b`, in f32.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.product(x, &self.epilogue())
    }

    /// `residual + x W^T + b`, in f32.
    pub(crate) fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.weight.product(x, &self.epilogue().with_residual(residual))
    }

    fn epilogue(&self) -> Epilogue<'_> {
        let plain = Epilogue::new().with_dtype(DType::F32);
        match &self.bias {
            Some(bias) => plain.with_bias(bias),
            None => plain,
        }
    }
}

/// `[outputs, inputs]`, in parts of some outputs each, one below the other.
#[derive(Debug)]
pub(crate) struct Matrix(pub(crate) Vec<Part>);

/// `[outputs, inputs]` in one form.
#[derive(Debug)]
pub(crate) enum Part {
    Dense(Tensor),
    Packed(Packed),
}

impl Matrix {
    /// `x W^T` and what comes behind it, of `x` `[tokens, inputs]`.
    pub(crate) fn product(&self, x: &Tensor, epilogue: &Epilogue<'_>) -> Result<Tensor> {
        if let [part] = self.0.as_slice() {
            return part.product(x, epilogue);
        }
        let tokens = x.shape().first().copied().unwrap_or(0);
        let outputs = self.0.iter().map(Part::outputs).sum();
        let dtype = epilogue.dtype.unwrap_or(x.dtype());
        let out = Tensor::uninit(x.gpu(), &[tokens, outputs], dtype)?;
        let mut start = 0;
        for part in &self.0 {
            let count = part.outputs();
            let bias = epilogue.bias.map(|bias| bias.narrow(0, start, count)).transpose()?;
            let residual = epilogue.residual.map(|all| all.narrow(1, start, count)).transpose()?;
            let mut own = *epilogue;
            (own.bias, own.residual) = (bias.as_ref(), residual.as_ref());
            part.product_into(x, &own, &out.narrow(1, start, count)?)?;
            start += count;
        }
        Ok(out)
    }

    /// `scale` times rows by their numbers `ids`, u32 `[tokens]`: `[tokens, inputs]`, f32.
    pub(crate) fn rows(&self, ids: &Tensor, scale: f32) -> Result<Tensor> {
        match self.0.as_slice() {
            [Part::Dense(table)] => Ok(gather_rows(table, ids, scale, DType::F32)?),
            [Part::Packed(table)] => Ok(packed::gather_rows(table, ids, scale, DType::F32)?),
            parts => {
                let got = format!("{} parts", parts.len());
                Err(attn_core::Error::config("embedding", "one tensor", got).into())
            }
        }
    }
}

impl Part {
    fn outputs(&self) -> usize {
        match self {
            Part::Dense(weight) => weight.shape().first().copied().unwrap_or(0),
            Part::Packed(weight) => weight.rows(),
        }
    }

    fn product(&self, x: &Tensor, epilogue: &Epilogue<'_>) -> Result<Tensor> {
        match self {
            Part::Dense(weight) => Ok(matmul_with(x, &transposed(weight)?, epilogue)?),
            Part::Packed(weight) => Ok(packed::matmul(x, weight, epilogue)?),
        }
    }

    fn product_into(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &Tensor) -> Result<()> {
        match self {
            Part::Dense(weight) => Ok(matmul_into(x, &transposed(weight)?, epilogue, out)?),
            Part::Packed(weight) => Ok(packed::matmul_into(x, weight, epilogue, out)?),
        }
    }
}

/// `[inputs, outputs]` of a weight that is stored `[outputs, inputs]`.
fn transposed(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.permute(&[1, 0])?)
}
