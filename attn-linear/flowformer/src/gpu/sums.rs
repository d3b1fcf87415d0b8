//! Sums over tokens: of all of them, or up to each one.

use attn_wgpu::matmul::matmul;
use attn_wgpu::scan::{Columns, Recurrence, column_sums, recurrence};
use attn_wgpu::{Result, Tensor};

use super::parts::{planes, scale_rows, whole};

/// What both forms sum up, each in its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) causal: bool,
}

/// Sums `[batch, heads, 1 or tokens, dim]`, and the one of all tokens `[batch, heads, dim]`.
pub(super) struct Sum {
    pub(super) rows: Tensor,
    pub(super) last: Tensor,
}

impl Totals {
    /// Of rows `x` `[batch, heads, tokens, dim]`, behind what was before them.
    pub(super) fn plain(self, x: &Tensor, before: Option<&Tensor>) -> Result<Sum> {
        if self.causal {
            let scanned = recurrence(Recurrence::new(x).with_first(before))?;
            return Ok(Sum { rows: scanned.h, last: scanned.last });
        }
        single(column_sums(Columns::new(x))?)
    }

    /// Of `f (x + shift)`, with numbers `f` `[batch, heads, tokens]`.
    pub(super) fn weighted(
        self,
        x: &Tensor,
        f: &Tensor,
        shift: f32,
        before: Option<&Tensor>,
    ) -> Result<Sum> {
        if self.causal {
            let scaled = scaled(x, f, shift)?;
            return self.plain(&scaled, before);
        }
        single(column_sums(Columns::new(x).with_weights(f).with_shift(shift))?)
    }

    /// As [`Totals::weighted`], from the last token to each one: its transpose.
    pub(super) fn back(self, x: &Tensor, f: &Tensor, shift: f32) -> Result<Tensor> {
        if self.causal {
            let scaled = scaled(x, f, shift)?;
            return Ok(recurrence(Recurrence::new(&scaled).reversed())?.h);
        }
        Ok(self.weighted(x, f, shift, None)?.rows)
    }
}

fn scaled(x: &Tensor, f: &Tensor, shift: f32) -> Result<Tensor> {
    let (tokens, dim) = (x.shape()[2], x.shape()[3]);
    scale_rows(&whole(x)?, f, shift, tokens)?.narrow(3, 0, dim)
}

fn single(last: Tensor) -> Result<Sum> {
    let heads = last.shape()[1];
    Ok(Sum { rows: last.split(1, &[heads, 1])?, last })
}

/// Tokens of a part of a product over tokens.
const PART: usize = 256;

/// Rows of a head that products over tokens like: whole parts, where there are more than two.
pub(super) fn padded_rows(tokens: usize) -> usize {
    if tokens <= 2 * PART { tokens } else { tokens.next_multiple_of(PART) }
}

/// `x^T y` over the rows of each head, `[batch * heads, width of x, width of y]`: part by part, which are as
/// many independent products, and then added up.
pub(super) fn product(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let &[batch, heads, rows, width_x] = x.shape() else { return Ok(x.clone()) };
    let width_y = y.shape()[3];
    if rows <= 2 * PART {
        return matmul(&planes(x)?.permute(&[0, 2, 1])?, &planes(y)?);
    }
    let parts = rows / PART;
    let split = |x: &Tensor| x.reshape(&[batch * heads * parts, PART, x.shape()[3]]);
    let products = matmul(&split(x)?.permute(&[0, 2, 1])?, &split(y)?)?;
    let products = products.reshape(&[batch, heads, parts, width_x * width_y])?;
    column_sums(Columns::new(&products))?.reshape(&[batch * heads, width_x, width_y])
}
