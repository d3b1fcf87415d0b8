//! The same block by block: products within a block, and a state between blocks.

use attn_core::Result;
use ndarray::{Array2, Array4, ArrayView1, ArrayView2, Axis, s};

use super::{Cotangents, Grads, Inputs, Output, head, state_of};
use crate::Config;

/// [`super::forward`] in blocks of `config.block` tokens. With `M[r,p] = lambda^(r-p)` for `r >= p`
/// and 0 above, in a block of `m` tokens, `KV` being the state before it:
///
/// ```text
/// O  = ((Q K^T) * M) V + diag(lambda^(r+1)) Q KV
/// KV = lambda^m KV + (diag(lambda^(m-1-p)) K)^T V
/// ```
///
/// # Errors
/// As [`super::forward`].
pub fn forward_chunked(inputs: Inputs<'_>, config: &Config) -> Result<Output> {
    let shape = inputs.check(config)?;
    let blocks = Blocks::new(shape.0.queries, config.block);
    let decays = config.decays(blocks.size + 1)?;
    let mut out = Array4::zeros(shape.0.out());
    let mut states = Array4::zeros(shape.kv());
    for [b, h, h_kv] in shape.heads() {
        let powers = decays.row(h);
        let mut kv = state_of(inputs.kv, &shape, b, h);
        for [start, end] in blocks.iter() {
            let q = head(inputs.q, b, h).slice_move(s![start..end, ..]);
            let k = head(inputs.k, b, h_kv).slice_move(s![start..end, ..]);
            let v = head(inputs.v, b, h_kv).slice_move(s![start..end, ..]);
            let p = Triangle::new(q, k, powers);
            let rows = p.times(v) + rising(q, powers).dot(&kv);
            out.slice_mut(s![b, h, start..end, ..]).assign(&rows);
            kv = kv * powers[end - start] + falling(k, powers).t().dot(&v);
        }
        states.slice_mut(s![b, h, .., ..]).assign(&kv);
    }
    Ok(Output { out, kv: states })
}

/// [`super::backward`] in blocks, from the last to the first. `KV` is the state before the block, and
/// `Om` the cotangent of the state behind it:
///
/// ```text
/// S  = (dO V^T) * M        P  = (Q K^T) * M
/// dQ = S K + diag(lambda^(r+1)) dO KV^T
/// dK = S^T Q + diag(lambda^(m-1-p)) V Om^T
/// dV = P^T dO + diag(lambda^(m-1-p)) K Om
/// Om = lambda^m Om + (diag(lambda^(r+1)) Q)^T dO
/// ```
///
/// # Errors
/// As [`super::backward`].
pub fn backward_chunked(
    inputs: Inputs<'_>,
    cotangents: Cotangents<'_>,
    config: &Config,
) -> Result<Grads> {
    let shape = inputs.check(config)?;
    cotangents.check(&shape)?;
    let blocks = Blocks::new(shape.0.queries, config.block);
    let decays = config.decays(blocks.size + 1)?;
    let mut grads = Grads::zeros(&shape);
    for [b, h, h_kv] in shape.heads() {
        let powers = decays.row(h);
        let block = |[start, end]: [usize; 2]| Block {
            q: head(inputs.q, b, h).slice_move(s![start..end, ..]),
            k: head(inputs.k, b, h_kv).slice_move(s![start..end, ..]),
            v: head(inputs.v, b, h_kv).slice_move(s![start..end, ..]),
            d_out: head(cotangents.out, b, h).slice_move(s![start..end, ..]),
        };
        let mut kv = state_of(inputs.kv, &shape, b, h);
        let mut states = Vec::new();
        for range in blocks.iter() {
            let Block { k, v, .. } = block(range);
            let next = &kv * powers[k.nrows()] + falling(k, powers).t().dot(&v);
            states.push(std::mem::replace(&mut kv, next));
        }
        let mut om = state_of(cotangents.kv, &shape, b, h);
        for ([start, end], kv) in blocks.iter().zip(&states).rev() {
            let Block { q, k, v, d_out } = block([start, end]);
            let [p, s] = [Triangle::new(q, k, powers), Triangle::new(d_out, v, powers)];
            let dq = s.times(k) + rising(d_out, powers).dot(&kv.t());
            grads.dq.slice_mut(s![b, h, start..end, ..]).assign(&dq);
            let mut dk = grads.dk.slice_mut(s![b, h_kv, start..end, ..]);
            dk += &(s.transposed_times(q) + falling(v, powers).dot(&om.t()));
            let mut dv = grads.dv.slice_mut(s![b, h_kv, start..end, ..]);
            dv += &(p.transposed_times(d_out) + falling(k, powers).dot(&om));
            om = om * powers[end - start] + rising(q, powers).t().dot(&d_out);
        }
        grads.d_kv.slice_mut(s![b, h, .., ..]).assign(&om);
    }
    Ok(grads)
}

/// Rows of a block.
struct Block<'a> {
    q: ArrayView2<'a, f64>,
    k: ArrayView2<'a, f64>,
    v: ArrayView2<'a, f64>,
    d_out: ArrayView2<'a, f64>,
}

/// How tokens are cut; the last block may be short.
struct Blocks {
    tokens: usize,
    size: usize,
}

impl Blocks {
    fn new(tokens: usize, size: usize) -> Self {
        // A block may be larger than any table of powers.
        Blocks { tokens, size: size.min(tokens).max(1) }
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = [usize; 2]> + ExactSizeIterator {
        let count = self.tokens.div_ceil(self.size);
        (0..count).map(|i| [i * self.size, ((i + 1) * self.size).min(self.tokens)])
    }
}

/// `(A B^T) * M`. What is above the diagonal is never read, so that a NaN of a later token stays
/// there.
struct Triangle(Array2<f64>);

impl Triangle {
    fn new(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>, powers: ArrayView1<'_, f64>) -> Self {
        let mut products = a.dot(&b.t());
        for ((r, p), x) in products.indexed_iter_mut() {
            if r >= p {
                *x *= powers[r - p];
            }
        }
        Triangle(products)
    }

    /// Row r of the product reads rows up to r of `x`.
    fn times(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut product = Array2::zeros(x.raw_dim());
        for (r, mut row) in product.rows_mut().into_iter().enumerate() {
            row.assign(&self.0.slice(s![r, ..=r]).dot(&x.slice(s![..=r, ..])));
        }
        product
    }

    /// Row p of the product of the transposed reads rows from p on of `x`.
    fn transposed_times(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut product = Array2::zeros(x.raw_dim());
        for (p, mut row) in product.rows_mut().into_iter().enumerate() {
            row.assign(&self.0.slice(s![p.., p]).dot(&x.slice(s![p.., ..])));
        }
        product
    }
}

/// `diag(lambda^(r+1)) x`: what reaches row r from before the block.
fn rising(x: ArrayView2<'_, f64>, powers: ArrayView1<'_, f64>) -> Array2<f64> {
    let mut x = x.to_owned();
    for (mut row, power) in x.axis_iter_mut(Axis(0)).zip(powers.iter().skip(1)) {
        row *= *power;
    }
    x
}

/// `diag(lambda^(m-1-p)) x`: what of row p is left behind the block.
fn falling(x: ArrayView2<'_, f64>, powers: ArrayView1<'_, f64>) -> Array2<f64> {
    let mut x = x.to_owned();
    for (mut row, power) in x.axis_iter_mut(Axis(0)).rev().zip(powers) {
        row *= *power;
    }
    x
}
