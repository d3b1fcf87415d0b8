//! The derivative of the dual form: chunks from the last to the first.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::{Chunk, pieces, scaled};
use crate::Config;
use crate::reference::network::{times_slope, zeros_like};
use crate::reference::products::Cotangents;
use crate::reference::state::{Adjoint, Memory};
use crate::reference::{Head, HeadGrads};

/// Vector-Jacobian product of [`super::forward`]; `adjoint` goes from the memory behind the tokens to that
/// before.
pub fn backward(
    head: &Head<'_>,
    mut memory: Memory,
    d_y: ArrayView2<'_, f64>,
    adjoint: &mut Adjoint,
    config: &Config,
) -> HeadGrads {
    let pieces = pieces(memory.position, head.tokens(), config);
    let mut chunks = Vec::new();
    for piece in &pieces {
        let part = head.part(piece.clone());
        let before = memory.clone();
        let chunk = Chunk::new(&part, &memory, config);
        chunk.store(&part, &mut memory, config);
        chunks.push((part, before, chunk));
    }
    if memory.position == 0 {
        adjoint.fold_start();
    }
    let mut grads = HeadGrads::zeros(head, config);
    for (piece, (part, before, chunk)) in pieces.into_iter().zip(chunks).rev() {
        let d_y = d_y.slice(s![piece.clone(), ..]);
        grads.assign(piece, &chunk.backward(&part, &before, d_y, adjoint, config));
        if before.position == 0 {
            adjoint.fold_start();
        }
    }
    grads
}

impl Chunk {
    fn backward(
        &self,
        head: &Head<'_>,
        memory: &Memory,
        d_y: ArrayView2<'_, f64>,
        adjoint: &mut Adjoint,
        config: &Config,
    ) -> HeadGrads {
        let mut grads = HeadGrads::zeros(head, config);
        let mut d_gates = Cotangents::zeros(head.tokens());
        let (mut d_x, mut d_g) = (zeros_like(&self.surprise.x), zeros_like(&self.g));
        let mut d_z = d_y.to_owned();
        for i in (0..self.g.len()).rev() {
            let d_r = self.layer(i, &d_z, memory, adjoint, &mut d_gates, &mut d_x[i], &mut d_g[i]);
            match i {
                0 => grads.dq = d_r,
                _ => d_z = times_slope(&d_r, &self.z[i - 1], config),
            }
        }
        (grads.d_eta, grads.d_alpha) = self.products.backward(&d_gates);
        for (g, d_g) in self.surprise.g.iter().zip(&mut d_g) {
            grads.d_theta += &dots(g, d_g);
            *d_g = scaled(head.theta, d_g);
        }
        let (dk, dv, d_start) = self.surprise.backward(&memory.start, d_x, d_g, config);
        (grads.dk, grads.dv) = (dk, dv);
        for (start, d_start) in adjoint.start.iter_mut().zip(&d_start) {
            *start += d_start;
        }
        grads
    }

    /// Layer `i` from the cotangent `d_z` of its results to that of what it reads with.
    #[expect(clippy::too_many_arguments, reason = "cotangents of all that a layer reads")]
    fn layer(
        &self,
        i: usize,
        d_z: &Array2<f64>,
        memory: &Memory,
        adjoint: &mut Adjoint,
        d_gates: &mut Cotangents,
        d_x: &mut Array2<f64>,
        d_g: &mut Array2<f64>,
    ) -> Array2<f64> {
        let products = &self.products;
        let (beta, kappa, c, omega) =
            (products.beta(), products.kappa(), products.c(), products.omega());
        let (r, x, g) = (&self.r[i], &self.surprise.x[i], &self.g[i]);
        let (w, s) = (&memory.w[i], &memory.s[i]);
        let (om, sg) = (adjoint.w[i].clone(), adjoint.s[i].clone());
        let (shares, beta_m, kappa_m) = self.last();
        let m = shares.len() - 1;

        let gg = d_z.dot(&g.t());
        let rx = r.dot(&x.t());
        let t = &gg * &c;
        let d_r = scaled(beta, &d_z.dot(&w.t())) + scaled(kappa, &d_z.dot(&s.t())) - t.dot(x);
        *d_x =
            -t.t().dot(r) - scaled(shares.view(), &g.dot(&om.t())) - scaled(omega, &g.dot(&sg.t()));
        *d_g = -(&rx * &c).t().dot(d_z)
            - scaled(shares.view(), &x.dot(&om))
            - scaled(omega, &x.dot(&sg));

        d_gates.c -= &(rx * gg);
        let mut last = d_gates.c.row_mut(m);
        last -= &dots(&x.dot(&om), g);
        d_gates.omega -= &dots(&x.dot(&sg), g);
        d_gates.beta += &dots(&r.dot(w), d_z);
        d_gates.kappa += &dots(&r.dot(s), d_z);
        d_gates.beta[m] += (&om * w).sum();
        d_gates.kappa[m] += (&om * s).sum();
        d_gates.momentum += (&sg * s).sum();

        adjoint.w[i] = scaled(beta, r).t().dot(d_z) + &om * beta_m;
        adjoint.s[i] = scaled(kappa, r).t().dot(d_z) + &om * kappa_m + &sg * products.momentum();
        d_r
    }
}

/// Products of rows.
fn dots(a: &Array2<f64>, b: &Array2<f64>) -> Array1<f64> {
    (a * b).sum_axis(Axis(1))
}
