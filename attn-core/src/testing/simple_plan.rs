//! The yardstick of the error budget for attention under a sparse plan.

use super::HostInputs;
use super::simple::{Member, Row, SimpleGrads, SimpleOutput, add, check, dot, expect, rows};
use crate::plan::{Combine, SparsePlan};
use crate::{Error, Mask, Result, dense};

/// [`super::simple_f32`] under a plan: each group of a query as one would write it down first, then
/// their combination, all in f32.
///
/// # Errors
/// As [`crate::plan::forward`].
pub fn simple_plan_f32(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &dense::Config,
) -> Result<SimpleOutput> {
    let shape = &inputs.shape;
    let mut out = vec![0.0; shape.out().iter().product()];
    let mut lse = vec![f32::NEG_INFINITY; shape.lse().iter().product()];
    each_row(inputs, plan, config, |row, all| {
        lse[row.index] = all.lse;
        let out = &mut out[row.index * shape.dim_v..][..shape.dim_v];
        all.groups.iter().for_each(|group| add(out, group.share, &group.out));
    })?;
    Ok(SimpleOutput { out, lse })
}

/// Vector-Jacobian product of [`simple_plan_f32`], likewise in f32.
///
/// # Errors
/// As [`crate::plan::backward`].
pub fn simple_plan_f32_backward(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &dense::Config,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
) -> Result<SimpleGrads> {
    config.check_derivative()?;
    let shape = &inputs.shape;
    let (dim, dim_v) = (shape.dim_qk, shape.dim_v);
    let scale = config.scale_for(dim) as f32;
    expect("d_out", d_out.len(), &shape.out())?;
    if let Some(d_lse) = d_lse {
        expect("d_lse", d_lse.len(), &shape.lse())?;
    }
    let mut grads = SimpleGrads {
        dq: vec![0.0; inputs.q.len()],
        dk: vec![0.0; inputs.k.len()],
        dv: vec![0.0; inputs.v.len()],
        d_sinks: inputs.sinks.as_ref().map(|sinks| vec![0.0; sinks.len()]),
    };
    each_row(inputs, plan, config, |row, all| {
        let d_out = &d_out[row.index * dim_v..][..dim_v];
        let d_lse = d_lse.map_or(0.0, |d_lse| d_lse[row.index]);
        let own = |group: &Group| dot(d_out, &group.out);
        let delta: f32 = all.groups.iter().map(|group| group.share * own(group)).sum();
        for group in &all.groups {
            let own = own(group);
            let d_own_lse = if group.fixed { 0.0 } else { group.share * (own - delta + d_lse) };
            for member in &group.members {
                let &Member { key, p, .. } = member;
                let d_p = group.share * (dot(d_out, row.value(key)) - own) + d_own_lse;
                let ds = scale * p * d_p * row.slope(member);
                let at = row.first_key + key;
                add(&mut grads.dq[row.index * dim..][..dim], ds, row.key(key));
                add(&mut grads.dk[at * dim..][..dim], ds, row.query());
                add(&mut grads.dv[at * dim_v..][..dim_v], group.share * p, d_out);
            }
        }
        if let Some(d_sinks) = &mut grads.d_sinks {
            d_sinks[row.head] += all.sink_share * (d_lse - delta);
        }
    })?;
    Ok(grads)
}

/// One softmax of a row.
struct Group {
    members: Vec<Member>,
    out: Vec<f32>,
    /// `lambda_g`, and whether it is given.
    weight: f32,
    fixed: bool,
    /// `exp(lambda_g - lse)`.
    share: f32,
}

/// All softmaxes of a row.
struct Groups {
    groups: Vec<Group>,
    lse: f32,
    sink_share: f32,
}

fn each_row(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &dense::Config,
    mut visit: impl FnMut(&Row<'_>, &Groups),
) -> Result<()> {
    check(inputs, config)?;
    let shape = &inputs.shape;
    plan.check_call(shape, config)?;
    if inputs.sinks.is_some() && !matches!(plan.combine, Combine::Single | Combine::Lse) {
        return Err(Error::config("sinks", "none under this combination of groups", "some"));
    }
    let offsets = plan.gate_offsets();
    let mut listing = None;
    for mut row in rows(inputs, config) {
        let (batch, query) = (row.index / shape.queries / shape.heads, row.index % shape.queries);
        let plane = plan.plane_of(batch, row.head).unwrap_or(0);
        if listing.as_ref().is_none_or(|(of, _)| *of != plane) {
            listing = Some((plane, plan.listing(plane)?));
        }
        let Some((_, listing)) = &listing else { continue };
        if !matches!(config.mask, Mask::Documents { .. }) {
            row.logits = row.logits.at_position(plan.shape.position(query));
        }
        let allowed = |key: usize| {
            config.mask == Mask::Causal || config.mask.allows(shape.lengths(), query, key)
        };
        let softmaxes = plan.softmaxes(query, listing.of(query), &offsets).into_iter();
        let groups = softmaxes.map(|group| {
            let keys = group.keys.iter().copied().filter(|&(key, _)| allowed(key));
            let (members, lse) = row.softmax(keys, None);
            let mut out = vec![0.0; shape.dim_v];
            members.iter().for_each(|member| add(&mut out, member.p, row.value(member.key)));
            let weight = group.weight.unwrap_or(lse);
            Group { members, out, weight, fixed: group.weight.is_some(), share: 0.0 }
        });
        let groups = combine(groups.collect(), row.sink);
        visit(&row, &groups);
    }
    Ok(())
}

fn combine(mut groups: Vec<Group>, sink: Option<f32>) -> Groups {
    if groups.iter().all(|group| group.members.is_empty()) {
        groups.clear();
    }
    let sink = sink.unwrap_or(f32::NEG_INFINITY);
    let max = groups.iter().map(|group| group.weight).fold(sink, f32::max);
    if max == f32::NEG_INFINITY {
        return Groups { groups: Vec::new(), lse: max, sink_share: 0.0 };
    }
    let of_sink = (sink - max).exp();
    groups.iter_mut().for_each(|group| group.share = (group.weight - max).exp());
    let sum = of_sink + groups.iter().map(|group| group.share).sum::<f32>();
    groups.iter_mut().for_each(|group| group.share /= sum);
    Groups { groups, lse: max + sum.ln(), sink_share: of_sink / sum }
}
