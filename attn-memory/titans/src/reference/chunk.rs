//! The dual form: a chunk at once, without the weights of single tokens. The same numbers as the
//! recurrence, up to rounding.
//!
//! With the products of [`super::products`], `X_i` and `G_i = theta * g_i` from the weights W* at the start
//! of the chunk, and `R` the queries (or their way through the layers before):
//!
//! ```text
//! R' = diag(beta) R W_i + diag(kappa) R S_i - ((R X_i^T) * C) G_i
//! W_i <- beta_m W_i + kappa_m S_i - (diag(C[m,:]) X_i)^T G_i
//! S_i <- Et[m,0] S_i - (diag(omega) X_i)^T G_i
//! ```
//!
//! A call that starts within a chunk has another W* than W, and is otherwise the same.

mod backward;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

pub(super) use backward::backward;

use super::Head;
use super::network::{Surprise, activated};
use super::products::Products;
use super::state::Memory;
use crate::Config;

/// Tokens of each chunk, of which the first may have begun before and the last may go on behind.
fn pieces(position: usize, tokens: usize, config: &Config) -> Vec<std::ops::Range<usize>> {
    let mut pieces = Vec::new();
    let (mut from, mut room) = (0, config.chunk - position);
    while from < tokens {
        let to = tokens.min(from.saturating_add(room));
        pieces.push(from..to);
        (from, room) = (to, config.chunk);
    }
    pieces
}

/// Outputs `[tokens, dim_v]`; the memory moves on.
pub(super) fn forward(head: &Head<'_>, memory: &mut Memory, config: &Config) -> Array2<f64> {
    let mut y = Array2::zeros((head.tokens(), config.dim_v));
    for piece in pieces(memory.position, head.tokens(), config) {
        let part = head.part(piece.clone());
        let chunk = Chunk::new(&part, memory, config);
        y.slice_mut(s![piece, ..]).assign(chunk.out());
        chunk.store(&part, memory, config);
    }
    y
}

/// A chunk on its way through the layers.
struct Chunk {
    products: Products,
    surprise: Surprise,
    /// `theta * g_i`.
    g: Vec<Array2<f64>>,
    /// By layer: what is read with, `[m, in]`, and what comes out, `[m, out]`.
    r: Vec<Array2<f64>>,
    z: Vec<Array2<f64>>,
}

impl Chunk {
    fn new(head: &Head<'_>, memory: &Memory, config: &Config) -> Self {
        let products = Products::new(head.eta, head.alpha);
        let surprise = Surprise::new(&memory.start, head.k, head.v, config);
        let g: Vec<_> = surprise.g.iter().map(|g| scaled(head.theta, g)).collect();
        let (mut r, mut z) = (vec![head.q.to_owned()], Vec::<Array2<f64>>::new());
        for (i, (w, s)) in memory.w.iter().zip(&memory.s).enumerate() {
            if i > 0 {
                r.push(activated(&z[i - 1], config));
            }
            let mut out = scaled(products.beta(), &r[i].dot(w));
            out += &scaled(products.kappa(), &r[i].dot(s));
            out -= &earlier(&r[i], &surprise.x[i], products.c(), &g[i]);
            z.push(out);
        }
        Chunk { products, surprise, g, r, z }
    }

    fn out(&self) -> &Array2<f64> {
        &self.z[self.z.len() - 1]
    }

    /// Shares of the chunk's tokens, of W and of S in the weights behind it.
    fn last(&self) -> (Array1<f64>, f64, f64) {
        let products = &self.products;
        let m = self.g[0].nrows() - 1;
        (products.c().row(m).to_owned(), products.beta()[m], products.kappa()[m])
    }

    fn store(&self, head: &Head<'_>, memory: &mut Memory, config: &Config) {
        let (shares, beta, kappa) = self.last();
        for (i, g) in self.g.iter().enumerate() {
            let x = &self.surprise.x[i];
            let (w, s) = (&mut memory.w[i], &mut memory.s[i]);
            *w *= beta;
            w.scaled_add(kappa, s);
            *w -= &scaled(shares.view(), x).t().dot(g);
            *s *= self.products.momentum();
            *s -= &scaled(self.products.omega(), x).t().dot(g);
        }
        memory.advance(head.tokens(), config);
    }
}

/// `((R X^T) * C) G`, without a look at later tokens, whose share is 0.
fn earlier(
    r: &Array2<f64>,
    x: &Array2<f64>,
    c: ArrayView2<'_, f64>,
    g: &Array2<f64>,
) -> Array2<f64> {
    let mut out = Array2::zeros(g.raw_dim());
    for t in 0..r.nrows() {
        let seen = ..=t;
        let pairs = x.slice(s![seen, ..]).dot(&r.row(t)) * c.slice(s![t, seen]);
        out.row_mut(t).assign(&pairs.dot(&g.slice(s![seen, ..])));
    }
    out
}

/// `diag(factors) rows`.
fn scaled(factors: ArrayView1<'_, f64>, rows: &Array2<f64>) -> Array2<f64> {
    rows * &factors.insert_axis(Axis(1))
}
