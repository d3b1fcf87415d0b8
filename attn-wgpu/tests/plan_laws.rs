//! Laws of attention over sparse plans on the device: what must not change a result, and what must.

mod common;

use attn_core::dense;
use attn_core::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::plans::plan_problems;
use attn_core::testing::{HostInputs, compare, plant};
use attn_wgpu::attention::{Inputs, merge};
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use attn_wgpu::{DType, Gpu, Tensor, wgpu};
use common::plans::{
    blocks, config, gradients, gradients_with, judge, judge_gradients, ranges, run, run_with,
};
use common::{Result32, Uploaded, cotangents, gpu, normal, open, shape};

/// The problems with small heads, whose kernels compile soon.
fn problems() -> impl Iterator<Item = (&'static str, HostInputs, SparsePlan)> {
    let all = plan_problems().unwrap().into_iter();
    let small = all.filter(|problem| problem.shape.dim_qk <= 40 || problem.shape.queries == 1);
    small.map(|problem| (problem.name, problem.inputs(), problem.plan))
}

/// Keys and values that a plan does not give to a query are no matter of its row, not even as NaN.
#[test]
fn nan_in_keys_that_are_not_selected_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let mut checked = 0;
    for (name, inputs, plan) in problems() {
        let shape = inputs.shape;
        let clean = run(&gpu, &inputs, &plan, &config(&plan));
        // Keys that nobody sees, and one that many see.
        let masks: Vec<_> = (0..shape.batch * shape.heads)
            .map(|row| plan.to_dense_mask(row / shape.heads, row % shape.heads).unwrap())
            .collect();
        let sees = |plane: usize, query: usize, key: usize| masks[plane].get(query, key);
        let mut planted = inputs.clone();
        let mut hit = Vec::new();
        for kv_plane in 0..shape.batch * shape.heads_kv {
            let group = shape.group();
            let users = kv_plane * group..(kv_plane + 1) * group;
            let mut seen = (0..shape.keys).filter(|&key| {
                users.clone().any(|plane| (0..shape.queries).any(|query| sees(plane, query, key)))
            });
            let one = seen.nth(kv_plane);
            let unseen = (0..shape.keys).filter(|&key| {
                !users.clone().any(|plane| (0..shape.queries).any(|query| sees(plane, query, key)))
            });
            for key in unseen.chain(one) {
                let at = kv_plane * shape.keys + key;
                let k = at * shape.dim_qk..(at + 1) * shape.dim_qk;
                let v = at * shape.dim_v..(at + 1) * shape.dim_v;
                plant(&mut planted.k, k, f32::NAN).unwrap();
                plant(&mut planted.v, v, f32::INFINITY).unwrap();
                hit.push((kv_plane, key));
            }
        }
        assert!(!hit.is_empty());
        let got = run(&gpu, &planted, &plan, &config(&plan));
        for plane in 0..masks.len() {
            for query in 0..shape.queries {
                let reads = hit.iter().any(|&(kv_plane, key)| {
                    kv_plane == plane / shape.group() && sees(plane, query, key)
                });
                if reads {
                    continue;
                }
                let row = plane * shape.queries + query;
                let out = row * shape.dim_v..(row + 1) * shape.dim_v;
                assert_eq!(got.out[out.clone()], clean.out[out], "{name} {plane} {query}");
                assert_eq!(got.lse[row].to_bits(), clean.lse[row].to_bits(), "{name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "{checked}");
}

/// Where entries have biases, rows before a key do not read it either.
#[test]
fn nan_in_keys_behind_a_row_changes_nothing_with_biases() {
    let Some(gpu) = gpu() else { return };
    let (n, key) = (40, 20);
    for m in [n, 3] {
        let inputs = normal(shape([1, 2, 1, m, n, 16, 16]), 14);
        let mut plan = blocks(PlanShape::from(&inputs.shape), Share::PerKvHead, true, [32, 8], 100);
        let bias = |i: usize| (i % 3) as f32 - 1.0;
        plan.parts[0].bias = Some((0..plan.parts[0].entries.nnz()).map(bias).collect());
        let key = if m == n { key } else { n - 1 };
        let mut planted = inputs.clone();
        plant(&mut planted.k, key * 16..(key + 1) * 16, f32::NAN).unwrap();
        plant(&mut planted.v, key * 16..(key + 1) * 16, f32::INFINITY).unwrap();
        let before = |inputs: &HostInputs| {
            let out = run(&gpu, inputs, &plan, &config(&plan)).out;
            let rows = out.chunks(16 * m).flat_map(|head| &head[..16 * (key + m - n)]);
            rows.copied().collect::<Vec<f32>>()
        };
        assert_eq!(before(&planted), before(&inputs), "{m}");
    }
}

/// A query that is NaN changes the gradients of keys that it sees, and a key those of queries that see it.
#[test]
fn gradients_of_nan_are_nan_where_it_is_seen() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 40, 40, 16, 16]), 15);
    let plan = blocks(PlanShape::from(&inputs.shape), Share::PerKvHead, true, [16, 4], 40);
    let plan = plan.with_near(Near { sink: 3, window: 9, grow: false }).canonicalise().unwrap();
    let (d_out, _) = cotangents(&inputs.shape, 10);
    let clean = gradients(&gpu, &inputs, &plan, &config(&plan), (&d_out, None));
    let mask = plan.to_dense_mask(0, 0).unwrap();
    let (head, query, key) = (1, 18, 20);
    let row = (head * 40 + query) * 16;
    let (mut planted, mut planted_d_out) = (inputs.clone(), d_out.clone());
    plant(&mut planted.q, row..row + 16, f32::NAN).unwrap();
    plant(&mut planted_d_out, row..row + 16, f32::NAN).unwrap();
    let got = gradients(&gpu, &planted, &plan, &config(&plan), (&planted_d_out, None));
    for other in 0..40 {
        let at = other * 16..(other + 1) * 16;
        for (got, clean) in [(&got.dk, &clean.dk), (&got.dv, &clean.dv)] {
            let same = got[at.clone()] == clean[at.clone()];
            assert_eq!(same, !mask.get(query, other), "key {other}");
        }
    }
    let mut planted = inputs.clone();
    plant(&mut planted.k, key * 16..(key + 1) * 16, f32::NAN).unwrap();
    plant(&mut planted.v, key * 16..(key + 1) * 16, f32::NAN).unwrap();
    let got = gradients(&gpu, &planted, &plan, &config(&plan), (&d_out, None));
    for row in 0..80 {
        let at = row * 16..(row + 1) * 16;
        let same = got.dq[at.clone()] == clean.dq[at];
        assert_eq!(same, !mask.get(row % 40, key), "row {row}");
    }
}

/// The same sets of keys as blocks, bits, ranges and tokens.
#[test]
fn entries_of_every_kind_are_the_same_plan() {
    let Some(gpu) = gpu() else { return };
    for queries in [2, 100] {
        let inputs = normal(shape([1, 4, 2, queries, 100, 16, 16]), 1);
        let near = Near { sink: 3, window: 7, grow: false };
        let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [32, 6], 40);
        for plan in [plan.clone(), plan.with_near(near).with_max_dist(60).canonicalise().unwrap()] {
            let first = run(&gpu, &inputs, &plan, &config(&plan));
            judge(&inputs, &plan, &config(&plan), &first).unwrap();
            let bits = plan.to_bits(6, 0).unwrap();
            assert!(run(&gpu, &inputs, &bits, &config(&plan)) == first);
            let all =
                [plan.to_ranges(), plan.to_tokens(), plan.to_blocks(3, 0), plan.to_bits(2, 0)];
            for other in all {
                let got = run(&gpu, &inputs, &other.unwrap(), &config(&plan));
                judge(&inputs, &plan, &config(&plan), &got).unwrap();
            }
        }
    }
}

/// Tiles as ranges and as lists of queries, in several parts.
#[test]
fn rows_of_every_kind_are_the_same_plan() {
    let Some(gpu) = gpu() else { return };
    for share in [Share::PerHead, Share::AllHeads] {
        let inputs = normal(shape([2, 4, 2, 50, 70, 16, 16]), 2);
        let extents = PlanShape::from(&inputs.shape);
        let near = Near { sink: 3, window: 7, grow: false };
        for near in [Near::default(), near] {
            let plan = blocks(extents, share, true, [8, 6], 40).with_near(near);
            let tiled = plan.canonicalise().unwrap();
            let planes = plan.planes() as u32;
            let groups = 50_u32.div_ceil(8);
            let plane_ptr: Vec<u32> = (0..=planes).map(|plane| plane * groups).collect();
            let starts: Vec<u32> = (0..planes * groups).map(|group| group % groups * 8).collect();
            let lens: Vec<u32> = starts.iter().map(|start| (50 - start).min(8)).collect();
            let q_ptr: Vec<u32> = std::iter::once(0)
                .chain(lens.iter().scan(0, |end, len| {
                    *end += len;
                    Some(*end)
                }))
                .collect();
            let q_idx = starts.iter().zip(&lens).flat_map(|(start, len)| *start..start + len);
            let lists = Rows::Lists { plane_ptr: plane_ptr.clone(), q_ptr, q_idx: q_idx.collect() };
            let ranges = Rows::Ranges { plane_ptr, q_start: starts, q_len: lens };
            for rows in [lists, ranges] {
                let mut other = tiled.clone();
                other.parts[0].rows = rows;
                let got = run(&gpu, &inputs, &other, &config(&plan));
                judge(&inputs, &tiled, &config(&plan), &got).unwrap();
            }
        }
    }
}

/// Batch entries and heads alone, splits by work and by memory, folded dispatches, two runs.
#[test]
fn neighbours_splits_and_runs_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let Some(working) = open(Gpu::builder().max_work_per_dispatch(1e5)) else { return };
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 7, ..Default::default() };
    let Some(folding) = open(Gpu::builder().limits(limits)) else { return };
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 60_000, ..Default::default() };
    let Some(small) = open(Gpu::builder().limits(limits)) else { return };
    let near = Near { sink: 3, window: 7, grow: false };
    for (m, n) in [(3, 600), (90, 300)] {
        for share in [Share::PerHead, Share::PerKvHead, Share::AllHeads] {
            let inputs = normal(shape([3, 6, 2, m, n, 16, 16]), 3);
            let extents = PlanShape::from(&inputs.shape);
            let plan = blocks(extents, share, true, [16, 8], 60).with_near(near);
            let plan = plan.canonicalise().unwrap();
            let want = run(&gpu, &inputs, &plan, &config(&plan));
            for other in [&gpu, &working, &folding, &small] {
                let got = run(other, &inputs, &plan, &config(&plan));
                assert!(got == want, "{m} {share:?} on {:?}", other.max_work_per_dispatch());
            }
            if share == Share::AllHeads {
                continue;
            }
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            let attention = PlanAttention::new(&gpu, config(&plan)).unwrap();
            for (batch, head_kv) in [(0, 1), (2, 0)] {
                let part = |tensor: &Tensor, per: usize| {
                    let entry = tensor.narrow(0, batch, 1).unwrap();
                    entry.narrow(1, head_kv * per, per).unwrap()
                };
                let (q, k, v) = (part(&uploaded.q, 3), part(&uploaded.k, 1), part(&uploaded.v, 1));
                let own = of_head(&plan, batch, head_kv);
                let own = DevicePlan::upload(&gpu, &own).unwrap();
                let alone = attention.forward(Inputs::new(&q, &k, &v), &own).unwrap();
                let row = (batch * 6 + head_kv * 3) * m;
                let got = alone.out.to_vec::<f32>().unwrap();
                assert_eq!(got, want.out[row * 16..][..3 * m * 16]);
                assert_eq!(alone.lse.to_vec::<f32>().unwrap(), want.lse[row..][..3 * m]);
            }
        }
    }
}

/// The part of a plan of blocks that one key head of a batch entry uses.
fn of_head(plan: &SparsePlan, batch: usize, head_kv: usize) -> SparsePlan {
    let (shape, group) = (plan.shape, plan.shape.group());
    let own = PlanShape::new(1, group, 1, shape.queries, shape.keys);
    let mut alone = plan.clone();
    alone.shape = own;
    let planes = alone.plan_heads();
    let groups = shape.queries.div_ceil(16);
    let first = (batch * plan.plan_heads() + head_kv * planes) * groups;
    if let attn_core::plan::Entries::Blocks { row_ptr, col, .. } = &mut alone.parts[0].entries {
        let cut = row_ptr[first..=first + planes * groups].to_vec();
        *col = col[cut[0] as usize..cut[planes * groups] as usize].to_vec();
        *row_ptr = cut.iter().map(|at| at - cut[0]).collect();
    }
    alone
}

/// Two plans without a key in common, merged, are the plan of both.
#[test]
fn merging_is_the_union() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 60, 60, 16, 16]), 4);
    let extents = PlanShape::from(&inputs.shape);
    let whole = blocks(extents, Share::PerHead, true, [16, 4], 60);
    let attn_core::plan::Entries::Blocks { row_ptr, col, .. } = &whole.parts[0].entries else {
        panic!()
    };
    let half = |odd: u32| {
        let (mut own_ptr, mut own) = (vec![0], Vec::new());
        for pair in row_ptr.windows(2) {
            let all = &col[pair[0] as usize..pair[1] as usize];
            own.extend(all.iter().filter(|&&j| j % 2 == odd));
            own_ptr.push(own.len() as u32);
        }
        SparsePlan::from_block_csr(extents, Share::PerHead, true, [16, 4], own_ptr, own).unwrap()
    };
    let halves = [half(0), half(1)];
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = PlanAttention::new(&gpu, config(&whole)).unwrap();
    let of = |plan| {
        attention.forward(uploaded.view(), &DevicePlan::upload(&gpu, plan).unwrap()).unwrap()
    };
    let (a, b) = (of(&halves[0]), of(&halves[1]));
    let merged = merge(&[(&a.out, &a.lse), (&b.out, &b.lse)]).unwrap();
    let got = Result32 { out: merged.out.to_vec().unwrap(), lse: merged.lse.to_vec().unwrap() };
    judge(&inputs, &whole, &config(&whole), &got).unwrap();
    // The same in two parts of one plan.
    let parts: Vec<Part> = halves.iter().flat_map(|plan| plan.parts.clone()).collect();
    let both = SparsePlan::new(extents, Share::PerHead, true, parts).with_combine(Combine::Lse);
    let got = run(&gpu, &inputs, &both, &config(&whole));
    judge(&inputs, &whole, &config(&whole), &got).unwrap();
    judge(&inputs, &both, &config(&whole), &got).unwrap();
}

/// More keys never lower the log-sum-exp, and what a plan leaves out bounds the error of its output:
/// `|o - o_dense| <= 2 (1 - mu) max_t |v_t|` with `mu` the dense mass of its keys.
#[test]
fn mass_is_monotone_and_bounds_the_error() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 64, 64, 16, 16]), 5);
    let extents = PlanShape::from(&inputs.shape);
    let all = SparsePlan::full(extents, true, 16).unwrap();
    let arrays = inputs.to_f64().unwrap();
    let exact = dense::forward(arrays.view(), &config(&all)).unwrap();
    let longest = inputs.v.chunks(16).map(norm).fold(0.0, f64::max);
    let mut before = vec![f32::NEG_INFINITY; 128];
    for percent in [10, 30, 60, 100] {
        let plan = blocks(extents, Share::PerHead, true, [16, 4], percent);
        let got = run(&gpu, &inputs, &plan, &config(&plan));
        for (row, (&lse, before)) in got.lse.iter().zip(&before).enumerate() {
            assert!(lse >= before - 1e-5, "{percent} {row}: {lse} {before}");
            let at = [0, row / 64, row % 64];
            let mass = (f64::from(lse) - exact.lse[at]).exp();
            let error: Vec<f32> = (0..16)
                .map(|d| got.out[row * 16 + d] - exact.out[[0, at[1], at[2], d]] as f32)
                .collect();
            let bound = 2.0 * (1.0 - mass) * longest + 1e-5;
            assert!(norm(&error) <= bound, "{percent} {row}: {} {bound}", norm(&error));
        }
        before = got.lse;
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// A key counts once whatever part of the plan it is in: with equal logits, the weight of every key is
/// one over their number.
#[test]
fn every_key_counts_once() {
    let Some(gpu) = gpu() else { return };
    let n = 96;
    let shape = shape([1, 1, 1, n, n, 4, n]);
    let unit = |i: usize| f32::from(u8::from(i.is_multiple_of(n + 1)));
    let zeros = vec![0.0; n * 4];
    let v = (0..n * n).map(unit).collect();
    let inputs = HostInputs { shape, q: zeros.clone(), k: zeros, v, sinks: None };
    for (sink, window, bk) in [(5, 9, 8), (16, 32, 16), (0, 20, 3), (7, 0, 5)] {
        let near = Near { sink, window, grow: false };
        let plan = blocks(PlanShape::from(&shape), Share::PerHead, true, [32, bk], 40);
        let plan = plan.with_near(near).canonicalise().unwrap();
        let got = run(&gpu, &inputs, &plan, &config(&plan)).out;
        let mask = plan.to_dense_mask(0, 0).unwrap();
        let mut want = vec![0.0; n * n];
        for (query, key) in (0..n * n).map(|i| (i / n, i % n)).filter(|&(q, k)| mask.get(q, k)) {
            want[query * n + key] = 1.0 / mask.count(query) as f64;
        }
        assert!(compare(&got, &want).max_abs <= 1e-6, "{near:?}");
    }
}

/// Chunks change the order of sums only: a bound for what that may be.
#[test]
fn one_chunk_and_many_differ_by_rounding() {
    let Some(gpu) = gpu() else { return };
    for (name, inputs, plan) in problems() {
        let of = |chunk| {
            let attention = PlanAttention::new(&gpu, config(&plan)).unwrap().with_chunk(chunk);
            run_with(&attention, &gpu, &inputs, &plan, DType::F32)
        };
        let (one, many) = (of(10_000), of(5));
        let wide: Vec<f64> = one.out.iter().map(|&x| f64::from(x)).collect();
        assert!(compare(&many.out, &wide).max_abs <= 1e-5, "{name}");
    }
}

/// Several threads record with one executor.
#[test]
fn threads_do_not_disturb_each_other() {
    let Some(gpu) = gpu() else { return };
    let case = |queries: usize| {
        let inputs = normal(shape([1, 2, 1, queries, 90, 16, 16]), 6);
        let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [16, 8], 50);
        let want = run(&gpu, &inputs, &plan, &config(&plan));
        (inputs, plan, want)
    };
    let (long, short) = (case(90), case(17));
    let attention = PlanAttention::new(&gpu, config(&long.1)).unwrap();
    std::thread::scope(|scope| {
        for (inputs, plan, want) in [&long, &short, &long, &short] {
            let attention = attention.clone();
            let gpu = &gpu;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert!(run_with(&attention, gpu, inputs, plan, DType::F32) == *want);
                }
            });
        }
    });
}

/// Output and gradients in chunks of 8 keys, so that every group is many items of work.
fn check_in_small_chunks(gpu: &Gpu, inputs: &HostInputs, plan: &SparsePlan) {
    let attention = PlanAttention::new(gpu, config(plan)).unwrap().with_chunk(8);
    let got = run_with(&attention, gpu, inputs, plan, DType::F32);
    judge(inputs, plan, &config(plan), &got).unwrap();
    let (d_out, d_lse) = cotangents(&inputs.shape, 7);
    let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
    let device = DevicePlan::upload(gpu, plan).unwrap();
    let got = gradients_with(&attention, gpu, inputs, &device, cotangents);
    judge_gradients(inputs, plan, &config(plan), cotangents, &got).unwrap();
}

/// Sinks alone have no window, whose keys would be items of work that nobody counts with.
#[test]
fn sinks_without_a_window() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 6, 2, 70, 90, 16, 16]), 3);
    let sinks = Near { sink: 3, window: 0, grow: false };
    let extents = PlanShape::from(&inputs.shape);
    let blocks = |percent| blocks(extents, Share::PerHead, true, [32, 8], percent);
    let apart = ranges(extents, Share::PerHead, true, &[[5, 20], [50, 9]], 0);
    for plan in [blocks(0), blocks(30), apart] {
        check_in_small_chunks(&gpu, &inputs, &plan.with_near(sinks).canonicalise().unwrap());
    }
}

/// In a multiset entries may overlap, and keys of a list may fall.
#[test]
fn keys_that_are_listed_several_times() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 6, 2, 40, 50, 16, 16]), 4);
    let extents = PlanShape::from(&inputs.shape);
    for (share, bk) in [(Share::PerHead, 30), (Share::PerKvHead, 65)] {
        let groups = SparsePlan::new(extents, share, true, Vec::new()).planes() * 3;
        let row_ptr = (0..=groups as u32).map(|group| 4 * group).collect();
        let col = [0, 0, 0, u32::from(bk < 50)].repeat(groups);
        let entries = Entries::Blocks { bk, origin: 0, row_ptr, col };
        let part = Part::new(Rows::Tiled { bq: 16 }, entries).with_multiset();
        let plan = SparsePlan::new(extents, share, true, vec![part]).canonicalise().unwrap();
        assert!(plan.parts[0].entries.nnz() > groups, "entries are kept");
        check_in_small_chunks(&gpu, &inputs, &plan);
    }
}
