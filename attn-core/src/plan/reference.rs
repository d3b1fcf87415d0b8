//! Attention under a plan in f64.

use ndarray::{Array1, Array3, Array4, ArrayView1, ArrayView2, s};

use super::{Combine, PlanShape, QueryGroup, SparsePlan};
use crate::dense::forward::{ProductBounds, RowStats, attend};
use crate::dense::logits::{Member, Row};
use crate::dense::{Config, Cotangents, Inputs, Output, expect};
use crate::{AttentionShape, Error, Mask, Result};

/// Derivatives of a loss by the inputs of [`forward`]. The sets of keys and the biases get none.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, queries, dim_qk]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, keys, dim_v]`.
    pub dv: Array4<f64>,
    /// By the sinks `[heads]`, where there were any.
    pub d_sinks: Option<Array1<f64>>,
    /// By the gates of each part, as in [`Combine::Gate`]; empty under any other combination.
    pub d_gates: Vec<Option<Vec<f64>>>,
}

impl SparsePlan {
    /// Whether a call of this shape and configuration can be computed under this plan: the plan is
    /// sound and was made for these extents; plan and mask agree on causality ([`Mask::Bits`] states
    /// nothing about it); with a `q_off` of its own the mask is one without other positions ([`Mask::Full`],
    /// [`Mask::Causal`], [`Mask::Bits`]). The allowed keys are then those of both.
    ///
    /// # Errors
    /// As [`SparsePlan::check`] and [`Config::validate`], and [`Error::Config`] naming `plan`, `mask` or
    /// `q_off`.
    pub fn check_call(&self, shape: &AttentionShape, config: &Config) -> Result<()> {
        self.check()?;
        config.validate()?;
        config.mask.validate(shape.lengths())?;
        let own = &self.shape;
        let aligned = PlanShape::from(shape);
        if (PlanShape { built_keys: own.built_keys, q_off: own.q_off, ..aligned }) != *own {
            let extents = |s: &PlanShape| {
                format!(
                    "batch {}, heads {}, heads_kv {}, {} queries, {} keys",
                    s.batch, s.heads, s.heads_kv, s.queries, s.keys
                )
            };
            return Err(Error::config("plan", extents(&aligned), extents(own)));
        }
        if config.mask.states_causal().is_some_and(|causal| causal != self.causal) {
            let expected = if self.causal { "a causal mask" } else { "a mask that is not causal" };
            return Err(Error::config(
                "mask",
                format!("{expected}, as the plan"),
                config.mask.name(),
            ));
        }
        if own.q_off != aligned.q_off
            && !matches!(config.mask, Mask::Full | Mask::Causal | Mask::Bits(_))
        {
            let expected = format!("{} under {}", aligned.q_off, config.mask.name());
            return Err(Error::config("q_off", expected, own.q_off));
        }
        Ok(())
    }
}

/// Attention of every query under a plan: see [the module](super). The mask of the configuration takes
/// keys away from those of the plan; the bias of an entry is added after the modifier.
///
/// Sinks of the inputs are one more logit without a value. They need [`Combine::Single`] or
/// [`Combine::Lse`].
///
/// # Errors
/// As [`crate::dense::forward`] and [`SparsePlan::check_call`].
pub fn forward(inputs: Inputs<'_>, plan: &SparsePlan, config: &Config) -> Result<Output> {
    let queries = inputs.check()?.queries;
    run(inputs, plan, config, queries, |row| row)
}

/// [`forward`] of the queries `rows` only, in this order; each has the bits that [`forward`] gives it.
///
/// # Errors
/// As [`forward`], and [`Error::Data`] where a row is not below the number of queries.
pub fn forward_rows(
    inputs: Inputs<'_>,
    plan: &SparsePlan,
    config: &Config,
    rows: &[usize],
) -> Result<Output> {
    let queries = inputs.check()?.queries;
    if let Some(row) = rows.iter().find(|&&row| row >= queries) {
        return Err(Error::data("rows", format!("indices below {queries} queries"), row));
    }
    run(inputs, plan, config, rows.len(), |row| rows[row])
}

fn run(
    inputs: Inputs<'_>,
    plan: &SparsePlan,
    config: &Config,
    rows: usize,
    row_at: impl Fn(usize) -> usize,
) -> Result<Output> {
    let call = Call::new(inputs, plan, config)?;
    let mut output = Output::empty(&call.shape, rows)?;
    let rows: Vec<usize> = (0..rows).map(row_at).collect();
    let bounds = ProductBounds::new(inputs, config);
    call.each_row(inputs, &rows, |[b, h, i], row, _, _| {
        let mut out = output.out.slice_mut(s![b, h, i, ..]);
        row.groups.iter().for_each(|group| out.scaled_add(group.share, &group.out));
        output.lse[[b, h, i]] = row.lse;
        let at = |stats: &mut Array3<f64>, of: fn(&Softmax) -> f64| {
            stats[[b, h, i]] = row.groups.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        };
        at(&mut output.row_max, |group| group.stats.max);
        let keys = row.groups.iter().flat_map(|group| &group.members).map(|member| member.key);
        output.product_bound[[b, h, i]] = bounds.largest([b, h, rows[i]], keys);
        output.argmax[[b, h, i]] = row.argmax();
    })?;
    Ok(output)
}

/// Vector-Jacobian product of [`forward`] with the sets of keys fixed: the derivatives of a loss by
/// `q`, `k`, `v`, the sinks and the gates, from those by the output and, optionally, by the
/// log-sum-exp. With `w_g = exp(lambda_g - lse)` and the groups' own outputs `o_g` and probabilities
/// `p_g`,
///
/// ```text
/// dlambda_g = w_g (do . o_g - do . o + dlse)
/// ds_gt     = p_gt (w_g (do . v_t - do . o_g) + dlambda_g [lambda_g = lse_g])
/// dv_t      = sum_g w_g p_gt do
/// ```
///
/// # Errors
/// As [`forward`] and [`crate::dense::backward`].
pub fn backward(
    inputs: Inputs<'_>,
    plan: &SparsePlan,
    config: &Config,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    let call = Call::new(inputs, plan, config)?;
    config.check_derivative()?;
    let shape = call.shape;
    expect("cotangents.out", cotangents.out.shape(), &shape.out())?;
    if let Some(dlse) = cotangents.lse {
        expect("cotangents.lse", dlse.shape(), &shape.lse())?;
    }
    let gates: &[_] = if let Combine::Gate(gates) = &plan.combine { gates } else { &[] };
    let mut grads = Grads {
        dq: Array4::zeros(shape.q()),
        dk: Array4::zeros(shape.k()),
        dv: Array4::zeros(shape.v()),
        d_sinks: inputs.sinks.map(|sinks| Array1::zeros(sinks.len())),
        d_gates: gates.iter().map(|gates| Some(vec![0.0; gates.as_ref()?.len()])).collect(),
    };
    let scale = config.scale_for(shape.dim_qk);
    let q = inputs.q.as_standard_layout();
    let d_out = cotangents.out.as_standard_layout();
    let rows: Vec<usize> = (0..shape.queries).collect();
    call.each_row(inputs, &rows, |[b, h, i], row, k, v| {
        let h_kv = h / shape.group();
        let (q, d_out) = (q.slice(s![b, h, i, ..]), d_out.slice(s![b, h, i, ..]));
        let d_lse = cotangents.lse.map_or(0.0, |d_lse| d_lse[[b, h, i]]);
        let own: Vec<f64> = row.groups.iter().map(|group| group.along(d_out)).collect();
        // A group without weight may have no finite output.
        let terms = row.groups.iter().zip(&own).filter(|(group, _)| group.share != 0.0);
        let delta: f64 = terms.map(|(group, own)| group.share * own).sum();
        for (group, own) in row.groups.iter().zip(own) {
            let d_lambda = group.share * (own - delta + d_lse);
            if let Some((part, gate)) = group.gate
                && let Some(Some(d_gates)) = grads.d_gates.get_mut(part)
            {
                d_gates[gate] += d_lambda;
            }
            let d_own_lse = if group.weighs_itself { d_lambda } else { 0.0 };
            for (member, p) in group.members.iter().zip(&group.p) {
                let t = member.key;
                let d_p = group.share * (d_out.dot(&v.row(t)) - own) + d_own_lse;
                let ds = scale * p * d_p * row.logits.slope(member);
                grads.dq.slice_mut(s![b, h, i, ..]).scaled_add(ds, &k.row(t));
                grads.dk.slice_mut(s![b, h_kv, t, ..]).scaled_add(ds, &q);
                grads.dv.slice_mut(s![b, h_kv, t, ..]).scaled_add(group.share * p, &d_out);
            }
        }
        if let Some(d_sinks) = &mut grads.d_sinks {
            d_sinks[h] += row.sink_share * (d_lse - delta);
        }
    })?;
    Ok(grads)
}

/// A call that fits together.
struct Call<'a> {
    plan: &'a SparsePlan,
    config: &'a Config,
    shape: AttentionShape,
}

impl<'a> Call<'a> {
    fn new(inputs: Inputs<'_>, plan: &'a SparsePlan, config: &'a Config) -> Result<Self> {
        let shape = inputs.check()?;
        plan.check_call(&shape, config)?;
        config.check(shape.lengths())?;
        if inputs.sinks.is_some() && !matches!(plan.combine, Combine::Single | Combine::Lse) {
            return Err(Error::config("sinks", "none under this combination of groups", "some"));
        }
        Ok(Call { plan, config, shape })
    }

    /// Visits `rows` of every batch entry and head with their place, keys and values.
    fn each_row(
        &self,
        inputs: Inputs<'_>,
        rows: &[usize],
        mut visit: impl FnMut([usize; 3], &PlanRow<'_>, ArrayView2<'_, f64>, ArrayView2<'_, f64>),
    ) -> Result<()> {
        let shape = &self.shape;
        let (q, k) = (inputs.q.as_standard_layout(), inputs.k.as_standard_layout());
        let v = inputs.v.as_standard_layout();
        let gate_offsets = self.plan.gate_offsets();
        let mut listing = None;
        for (b, h) in (0..shape.batch).flat_map(|b| (0..shape.heads).map(move |h| (b, h))) {
            let plane = self.plan.plane_of(b, h).unwrap_or(0);
            // Heads that share a plane come one after another.
            if listing.as_ref().is_none_or(|(of, _)| *of != plane) {
                listing = Some((plane, self.plan.listing(plane)?));
            }
            let Some((_, listing)) = &listing else { continue };
            let h_kv = h / shape.group();
            let (k, v) = (k.slice(s![b, h_kv, .., ..]), v.slice(s![b, h_kv, .., ..]));
            let sink = inputs.sinks.map(|sinks| sinks[h]);
            for (i, &query) in rows.iter().enumerate() {
                let groups = self.plan.softmaxes(query, listing.of(query), &gate_offsets);
                let logits = self.logits([b, h, query]);
                let q = q.slice(s![b, h, query, ..]);
                let groups =
                    groups.into_iter().map(|group| self.softmax(group, &logits, q, k, v, query));
                visit([b, h, i], &PlanRow::new(groups.collect(), sink, logits), k, v);
            }
        }
        Ok(())
    }

    fn logits(&self, at: [usize; 3]) -> Row<'a> {
        let row = Row::new(self.config, self.shape.lengths(), at);
        match self.config.mask {
            // Positions inside documents are the mask's own.
            Mask::Documents { .. } => row,
            _ => row.at_position(self.plan.shape.position(at[2])),
        }
    }

    fn softmax(
        &self,
        group: QueryGroup,
        logits: &Row<'_>,
        q: ArrayView1<'_, f64>,
        k: ArrayView2<'_, f64>,
        v: ArrayView2<'_, f64>,
        query: usize,
    ) -> Softmax {
        // A causal plan is as causal as the mask, from its own positions.
        let mask = Some(&self.config.mask).filter(|mask| **mask != Mask::Causal);
        let allowed =
            |key: usize| mask.is_none_or(|mask| mask.allows(self.shape.lengths(), query, key));
        let keys = group.keys.into_iter().filter(|&(key, _)| allowed(key));
        let members = keys.filter_map(|(key, bias)| {
            let mut member = logits.member(q, k, key)?;
            member.logit += f64::from(bias);
            Some(member)
        });
        let members: Vec<Member> = members.collect();
        let (mut p, mut out) = (Vec::new(), Array1::zeros(v.ncols()));
        let stats = attend(&members, None, v, &mut p, out.view_mut());
        let weight = group.weight.map_or(stats.lse, f64::from);
        let weighs_itself = group.weight.is_none();
        Softmax { members, p, out, stats, weight, weighs_itself, gate: group.gate, share: 0.0 }
    }
}

/// One group of one query.
struct Softmax {
    members: Vec<Member>,
    p: Vec<f64>,
    out: Array1<f64>,
    stats: RowStats,
    /// `lambda_g`, and whether it is the group's own log-sum-exp.
    weight: f64,
    weighs_itself: bool,
    gate: Option<(usize, usize)>,
    /// `exp(lambda_g - lse)`.
    share: f64,
}

impl Softmax {
    /// Product of the group's output with a cotangent.
    fn along(&self, d_out: ArrayView1<'_, f64>) -> f64 {
        if self.members.is_empty() { 0.0 } else { d_out.dot(&self.out) }
    }
}

/// All groups of one query.
struct PlanRow<'a> {
    groups: Vec<Softmax>,
    lse: f64,
    sink_share: f64,
    logits: Row<'a>,
}

impl<'a> PlanRow<'a> {
    fn new(mut groups: Vec<Softmax>, sink: Option<f64>, logits: Row<'a>) -> Self {
        if groups.iter().all(|group| group.members.is_empty()) {
            groups.clear();
        }
        let sink = sink.unwrap_or(f64::NEG_INFINITY);
        // The larger one, or NaN: `f64::max` would hide it.
        let larger = |a: f64, b: f64| if a > b || a.is_nan() { a } else { b };
        let max = groups.iter().map(|group| group.weight).fold(sink, larger);
        if max == f64::NEG_INFINITY {
            return PlanRow { groups: Vec::new(), lse: max, sink_share: 0.0, logits };
        }
        let of_sink = (sink - max).exp();
        groups.iter_mut().for_each(|group| group.share = (group.weight - max).exp());
        let sum = of_sink + groups.iter().map(|group| group.share).sum::<f64>();
        groups.iter_mut().for_each(|group| group.share /= sum);
        PlanRow { groups, lse: max + sum.ln(), sink_share: of_sink / sum, logits }
    }

    /// Key of the largest logit, the lowest one on ties.
    fn argmax(&self) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for group in &self.groups {
            if let Some(key) = group.stats.argmax {
                let logit = group.stats.max;
                if best.is_none_or(|(max, at)| logit > max || (logit == max && key < at)) {
                    best = Some((logit, key));
                }
            }
        }
        best.map(|(_, key)| key)
    }
}
