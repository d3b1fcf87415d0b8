//! The recurrence, token by token, and its derivative.
//!
//! ```text
//! S_t = eta_t S_(t-1) - theta_t u_t(W*),  W_t = (1 - alpha_t) W_(t-1) + S_t,  y_t = M(W_t; q_t)
//! ```

use ndarray::{Array2, s};

use super::network::{Surprise, Weights, read, read_backward};
use super::state::{Adjoint, Memory};
use super::{Head, HeadGrads};
use crate::Config;

/// Outputs `[tokens, dim_v]`; the memory moves on.
pub(super) fn forward(head: &Head<'_>, memory: &mut Memory, config: &Config) -> Array2<f64> {
    let mut y = Array2::zeros((head.tokens(), config.dim_v));
    for t in 0..head.tokens() {
        store(head, t, memory, config);
        y.row_mut(t).assign(&read(&memory.w, head.q.slice(s![t..=t, ..]), config).row(0));
        memory.advance(1, config);
    }
    y
}

/// One step of the memory, which tells its gradient.
fn store(head: &Head<'_>, t: usize, memory: &mut Memory, config: &Config) -> Surprise {
    let rows = s![t..=t, ..];
    let surprise = Surprise::new(&memory.start, head.k.slice(rows), head.v.slice(rows), config);
    for (i, (w, s)) in memory.w.iter_mut().zip(&mut memory.s).enumerate() {
        *s *= head.eta[t];
        s.scaled_add(-head.theta[t], &gradient(&surprise, i));
        *w *= 1.0 - head.alpha[t];
        *w += &*s;
    }
    surprise
}

/// `u_i` of a single token.
fn gradient(surprise: &Surprise, i: usize) -> Array2<f64> {
    surprise.x[i].t().dot(&surprise.g[i])
}

/// What a step of the way back needs.
struct Step {
    before: Memory,
    after: Weights,
    surprise: Surprise,
}

/// Vector-Jacobian product of [`forward`]; `adjoint` goes from the memory behind the tokens to that before.
pub(super) fn backward(
    head: &Head<'_>,
    mut memory: Memory,
    d_y: ndarray::ArrayView2<'_, f64>,
    adjoint: &mut Adjoint,
    config: &Config,
) -> HeadGrads {
    let mut steps = Vec::new();
    for t in 0..head.tokens() {
        let before = memory.clone();
        let surprise = store(head, t, &mut memory, config);
        steps.push(Step { before, after: memory.w.clone(), surprise });
        memory.advance(1, config);
    }
    if memory.position == 0 {
        adjoint.fold_start();
    }
    let mut grads = HeadGrads::zeros(head, config);
    for (t, step) in steps.iter().enumerate().rev() {
        let rows = s![t..=t, ..];
        let Step { before, after, surprise } = step;
        let (dq, dw) = read_backward(after, head.q.slice(rows), d_y.slice(rows), config);
        grads.dq.slice_mut(rows).assign(&dq);
        let (mut d_x, mut d_g) = (Vec::new(), Vec::new());
        for (i, dw) in dw.iter().enumerate() {
            let (wb, sb) = (&mut adjoint.w[i], &mut adjoint.s[i]);
            *wb += dw;
            *sb += &*wb;
            grads.d_alpha[t] -= (&*wb * &before.w[i]).sum();
            grads.d_eta[t] += (&*sb * &before.s[i]).sum();
            grads.d_theta[t] -= (&*sb * &gradient(surprise, i)).sum();
            let ub = &*sb * -head.theta[t];
            d_x.push(surprise.g[i].dot(&ub.t()));
            d_g.push(surprise.x[i].dot(&ub));
            *wb *= 1.0 - head.alpha[t];
            *sb *= head.eta[t];
        }
        let (dk, dv, d_start) = surprise.backward(&before.start, d_x, d_g, config);
        grads.dk.slice_mut(rows).assign(&dk);
        grads.dv.slice_mut(rows).assign(&dv);
        for (start, d_start) in adjoint.start.iter_mut().zip(&d_start) {
            *start += d_start;
        }
        if before.position == 0 {
            adjoint.fold_start();
        }
    }
    grads
}
