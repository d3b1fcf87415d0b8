//! The form in which every sink sees every source.

use ndarray::{Array1, Array2, Axis};

use super::{Plane, PlaneGrads, PlaneOutput, row_products, scaled_rows, sigmoid};
use crate::Config;

/// The four sums over tokens, each `[dim_qk]`: K, Q, K^ and Q^.
struct Sums {
    k: Array1<f64>,
    q: Array1<f64>,
    k_hat: Array1<f64>,
    q_hat: Array1<f64>,
}

/// Sinks per source.
fn ratio(plane: &Plane) -> f64 {
    plane.sinks.len() as f64 / plane.sources.len() as f64
}

pub(super) fn forward(plane: &Plane, config: &Config) -> PlaneOutput {
    run(plane, config).0
}

fn run(plane: &Plane, config: &Config) -> (PlaneOutput, Sums) {
    let (a, b) = (&plane.a, &plane.b);
    let flow = |x: &Array2<f64>, sum: &Array1<f64>| {
        x.mapv(|x| x + config.epsilon).dot(&sum.mapv(|sum| sum + config.epsilon))
    };
    let (k, q) = (b.sum_axis(Axis(0)), a.sum_axis(Axis(0)));
    let (incoming, outgoing) = (flow(a, &k), flow(b, &q));
    let k_hat = scaled_rows(b, &outgoing.recip()).sum_axis(Axis(0));
    let q_hat = scaled_rows(a, &incoming.recip()).sum_axis(Axis(0));
    let (conserved_sink, conserved_source) = (flow(a, &k_hat), flow(b, &q_hat));
    let competition =
        softmax(conserved_source.mapv(|flow| config.clamped(flow))) * plane.sources.len() as f64;
    let allocation = match plane.sources.is_empty() {
        // Nothing flows where there is no source.
        true => Array1::zeros(plane.sinks.len()),
        false => conserved_sink.mapv(|flow| sigmoid(flow * ratio(plane))),
    };
    let memory = b.t().dot(&scaled_rows(&plane.v, &competition));
    let out = scaled_rows(&a.dot(&memory), &(&allocation / &incoming));
    let output = PlaneOutput {
        out,
        incoming,
        outgoing,
        conserved_sink,
        conserved_source,
        allocation,
        competition,
        memory,
    };
    (output, Sums { k, q, k_hat, q_hat })
}

fn softmax(logits: Array1<f64>) -> Array1<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = logits.mapv(|logit| (logit - max).exp());
    let sum = weights.sum();
    weights / sum
}

/// From the outputs back to the flows, and from each flow to its two factors, in the reverse of the order in
/// which [`forward`] computes them.
pub(super) fn backward(plane: &Plane, config: &Config, d_out: &Array2<f64>) -> PlaneGrads {
    let (a, b, v) = (&plane.a, &plane.b, &plane.v);
    if plane.sinks.is_empty() || plane.sources.is_empty() {
        let zeros = |x: &Array2<f64>| Array2::zeros(x.dim());
        return PlaneGrads { da: zeros(a), db: zeros(b), dv: zeros(v) };
    }
    let (output, sums) = run(plane, config);
    let eps = config.epsilon;
    let (alloc, comp) = (&output.allocation, &output.competition);
    let (incoming, outgoing) = (&output.incoming, &output.outgoing);

    // o = alloc r / I with r = a M.
    let r = a.dot(&output.memory);
    let d_alloc = row_products(d_out, &r) / incoming;
    let d_r = scaled_rows(d_out, &(alloc / incoming));
    let mut d_incoming = -row_products(&d_r, &r) / incoming;
    let mut da = d_r.dot(&output.memory.t());
    let d_memory = a.t().dot(&d_r);

    // M = b^T w with w = comp v.
    let d_w = b.dot(&d_memory);
    let mut db = scaled_rows(v, comp).dot(&d_memory.t());
    let dv = scaled_rows(&d_w, comp);
    let d_comp = row_products(v, &d_w);

    // The softmax of the clamped flows, and the sigmoid of the others.
    let mean = comp.dot(&d_comp) / plane.sources.len() as f64;
    let gate = output.conserved_source.mapv(|flow| config.clamp_slope(flow));
    let d_source = comp * &(&d_comp - mean) * gate;
    let d_sink = d_alloc * alloc * alloc.mapv(|alloc| 1.0 - alloc) * ratio(plane);

    // Adds the derivatives of flows <x_i, sum> by x, and returns those by the sum.
    let flow = |dx: &mut Array2<f64>, d_flow: &Array1<f64>, x: &Array2<f64>, sum: &Array1<f64>| {
        let sum = sum.mapv(|sum| sum + eps);
        for (mut row, &d) in dx.rows_mut().into_iter().zip(d_flow) {
            row.scaled_add(d, &sum);
        }
        x.mapv(|x| x + eps).t().dot(d_flow)
    };
    let d_k_hat = flow(&mut da, &d_sink, a, &sums.k_hat);
    let d_q_hat = flow(&mut db, &d_source, b, &sums.q_hat);

    // Adds the derivatives of sum_i x_i / flow_i by x, and returns those by the flows.
    let quotients =
        |dx: &mut Array2<f64>, d_sum: &Array1<f64>, x: &Array2<f64>, flow: &Array1<f64>| {
            for (mut row, &flow) in dx.rows_mut().into_iter().zip(flow) {
                row.scaled_add(1.0 / flow, d_sum);
            }
            -x.dot(d_sum) / (flow * flow)
        };
    let d_outgoing = quotients(&mut db, &d_k_hat, b, outgoing);
    d_incoming += &quotients(&mut da, &d_q_hat, a, incoming);

    let d_k = flow(&mut da, &d_incoming, a, &sums.k);
    let d_q = flow(&mut db, &d_outgoing, b, &sums.q);
    da += &d_q;
    db += &d_k;
    PlaneGrads { da, db, dv }
}
