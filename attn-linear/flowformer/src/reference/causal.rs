//! The form in which a token sees itself and earlier ones, all tokens at once.

use ndarray::{Array1, Array2, Axis};

use super::{Plane, PlaneGrads, PlaneOutput, row_products, scaled_rows, sigmoid};
use crate::Config;

/// The sums up to each token, `[tokens, dim_qk]`, and the logarithms of those of exponentials.
struct Sums {
    k: Array2<f64>,
    q: Array2<f64>,
    k_hat: Array2<f64>,
    q_hat: Array2<f64>,
    lse: Array1<f64>,
}

/// Row t is the sum of rows 0 to t.
fn sums(mut x: Array2<f64>) -> Array2<f64> {
    x.accumulate_axis_inplace(Axis(0), |before, row| *row += before);
    x
}

/// Row s is the sum of rows s to the last: the transpose of [`sums`].
fn sums_from(mut x: Array2<f64>) -> Array2<f64> {
    x.invert_axis(Axis(0));
    let mut x = sums(x);
    x.invert_axis(Axis(0));
    x
}

/// 1, 2, .. of the tokens.
fn counts(plane: &Plane) -> Array1<f64> {
    (1..=plane.sinks.len()).map(|t| t as f64).collect()
}

/// The logarithm of the sum of exponentials up to each token.
fn log_sums(logits: &Array1<f64>) -> Array1<f64> {
    let (mut max, mut sum) = (f64::NEG_INFINITY, 0.0);
    let step = |&logit: &f64| {
        let larger = max.max(logit);
        sum = sum * (max - larger).exp() + (logit - larger).exp();
        max = larger;
        max + f64::ln(sum)
    };
    logits.iter().map(step).collect()
}

pub(super) fn forward(plane: &Plane, config: &Config) -> PlaneOutput {
    let mut output = run(plane, config).0;
    let r = products(plane, &scaled_rows(&plane.v, &output.competition));
    output.out = scaled_rows(&r, &(&output.allocation / &output.incoming));
    output
}

/// Everything but the output.
fn run(plane: &Plane, config: &Config) -> (PlaneOutput, Sums) {
    let (a, b, t) = (&plane.a, &plane.b, counts(plane));
    let raised = |x: &Array2<f64>| x.mapv(|x| x + config.epsilon);
    let flow = |x: &Array2<f64>, sum: &Array2<f64>| row_products(&raised(x), &raised(sum));
    let (k, q) = (sums(b.clone()), sums(a.clone()));
    let (incoming, outgoing) = (flow(a, &k), flow(b, &q));
    let k_hat = sums(scaled_rows(b, &(&t / &outgoing)));
    let q_hat = sums(scaled_rows(a, &(&t / &incoming)));
    let (conserved_sink, conserved_source) = (flow(a, &k_hat) / &t, flow(b, &q_hat) / &t);
    let logits = conserved_source.mapv(|flow| config.clamped(flow));
    let lse = log_sums(&logits);
    let competition = (logits - &lse).exp() * &t;
    let allocation = conserved_sink.mapv(sigmoid);
    let memory = b.t().dot(&scaled_rows(&plane.v, &competition));
    let output = PlaneOutput {
        out: Array2::zeros((0, 0)),
        incoming,
        outgoing,
        conserved_sink,
        conserved_source,
        allocation,
        competition,
        memory,
    };
    (output, Sums { k, q, k_hat, q_hat, lse })
}

/// `a_t M_t = sum_{s <= t} (a_t . b_s) w_s`, pair by pair.
fn products(plane: &Plane, w: &Array2<f64>) -> Array2<f64> {
    let mut r = Array2::zeros(w.dim());
    for (t, a) in plane.a.rows().into_iter().enumerate() {
        for s in 0..=t {
            r.row_mut(t).scaled_add(a.dot(&plane.b.row(s)), &w.row(s));
        }
    }
    r
}

/// As that of the other form, with sums up to a token where that has sums over all. What [`sums`] is forward,
/// [`sums_from`] is backward.
///
/// The competition `comp_t = t e^(z_t - lse_t)` makes
/// `dz_t = comp_t dcomp_t - e^(z_t - lse_t) rho_t` with
/// `rho_t = comp_t dcomp_t + e^(lse_t - lse_(t+1)) rho_(t+1)`: no exponent is above 0.
pub(super) fn backward(plane: &Plane, config: &Config, d_out: &Array2<f64>) -> PlaneGrads {
    let (a, b, v, t) = (&plane.a, &plane.b, &plane.v, counts(plane));
    let (output, sums) = run(plane, config);
    let eps = config.epsilon;
    let (alloc, comp) = (&output.allocation, &output.competition);
    let (incoming, outgoing) = (&output.incoming, &output.outgoing);

    // o = alloc r / I with r = a M, and M of w = comp v.
    let w = scaled_rows(v, comp);
    let r = products(plane, &w);
    let d_alloc = row_products(d_out, &r) / incoming;
    let d_r = scaled_rows(d_out, &(alloc / incoming));
    let mut d_incoming = -row_products(&d_r, &r) / incoming;
    let (mut da, mut db) = (Array2::zeros(a.dim()), Array2::zeros(b.dim()));
    let mut d_w = Array2::<f64>::zeros(w.dim());
    for t in 0..plane.sinks.len() {
        for s in 0..=t {
            let d_product = d_r.row(t).dot(&w.row(s));
            da.row_mut(t).scaled_add(d_product, &b.row(s));
            db.row_mut(s).scaled_add(d_product, &a.row(t));
            d_w.row_mut(s).scaled_add(a.row(t).dot(&b.row(s)), &d_r.row(t));
        }
    }
    let dv = scaled_rows(&d_w, comp);
    let d_comp = row_products(v, &d_w);

    let d_source = through_competition(&output, &sums.lse, &d_comp, &t)
        * output.conserved_source.mapv(|flow| config.clamp_slope(flow))
        / &t;
    let d_sink = d_alloc * alloc * alloc.mapv(|alloc| 1.0 - alloc) / &t;

    // Adds the derivatives of flows <x_t, sum_t> by x, and returns those by the terms of the sum.
    let flow = |dx: &mut Array2<f64>, d_flow: &Array1<f64>, x: &Array2<f64>, sum: &Array2<f64>| {
        *dx += &scaled_rows(&sum.mapv(|sum| sum + eps), d_flow);
        sums_from(scaled_rows(&x.mapv(|x| x + eps), d_flow))
    };
    let d_k_hat = flow(&mut da, &d_sink, a, &sums.k_hat);
    let d_q_hat = flow(&mut db, &d_source, b, &sums.q_hat);

    // Adds the derivatives of terms t x_t / flow_t by x, and returns those by the flows.
    let quotients =
        |dx: &mut Array2<f64>, d_term: &Array2<f64>, x: &Array2<f64>, flow: &Array1<f64>| {
            *dx += &scaled_rows(d_term, &(&t / flow));
            -row_products(x, d_term) * &t / (flow * flow)
        };
    let d_outgoing = quotients(&mut db, &d_k_hat, b, outgoing);
    d_incoming += &quotients(&mut da, &d_q_hat, a, incoming);

    let d_k = flow(&mut da, &d_incoming, a, &sums.k);
    let d_q = flow(&mut db, &d_outgoing, b, &sums.q);
    da += &d_q;
    db += &d_k;
    PlaneGrads { da, db, dv }
}

/// From the derivatives by the competition to those by the clamped flows.
fn through_competition(
    output: &PlaneOutput,
    lse: &Array1<f64>,
    d_comp: &Array1<f64>,
    t: &Array1<f64>,
) -> Array1<f64> {
    let comp = &output.competition;
    let mut dz = Array1::zeros(comp.len());
    let (mut rho, mut next) = (0.0, 0.0);
    for s in (0..comp.len()).rev() {
        let own = comp[s] * d_comp[s];
        if s + 1 < comp.len() {
            rho *= f64::exp(lse[s] - next);
        }
        rho += own;
        next = lse[s];
        dz[s] = own - comp[s] / t[s] * rho;
    }
    dz
}
