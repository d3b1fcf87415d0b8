//! Laws of the reference, and the device against it.

use attn_core::plan::SparsePlan;
use attn_core::testing::{Values, fill};
use attn_core::{Mask, dense};
use attn_flexprefill::reference::{Inputs, Selection, forward, select};
use attn_flexprefill::{BudgetRule, Config, FlexPrefill, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, s};
use proptest::prelude::*;

/// `[1, heads, tokens, dim]`, from a normal distribution.
fn tensor(seed: u64, stream: u64, heads: usize, tokens: usize, dim: usize) -> Array4<f64> {
    let data = fill(seed, stream, Values::Normal, heads * tokens * dim);
    let data = data.into_iter().map(f64::from).collect();
    Array4::from_shape_vec((1, heads, tokens, dim), data).unwrap()
}

fn small() -> Config {
    Config::new().with_block(8).with_budget(None, None)
}

/// Whether a block is on, for one head: `[blocks, blocks]`.
fn blocks(plan: &SparsePlan, head: usize, block: usize) -> Vec<Vec<bool>> {
    let tokens = plan.shape.keys;
    let bits = plan.to_dense_mask(0, head).unwrap();
    let count = tokens.div_ceil(block);
    let last = |row: usize| ((row + 1) * block).min(tokens) - 1;
    (0..count).map(|row| (0..=row).map(|j| bits.get(last(row), j * block)).collect()).collect()
}

/// Shares of the attention mass of every row that lie on the plan.
fn kept(q: &Array4<f64>, k: &Array4<f64>, plan: &SparsePlan, head: usize) -> Vec<f64> {
    let group = q.dim().1 / k.dim().1;
    let q = q.slice(s![.., head..head + 1, .., ..]);
    let k = k.slice(s![.., head / group..head / group + 1, .., ..]);
    let causal = dense::Config::new().with_mask(Mask::Causal);
    let map = dense::forward_with_probs(Inputs::new(q, k, k), &causal).unwrap().probs.unwrap();
    let bits = plan.to_dense_mask(0, head).unwrap();
    let keys = 0..map.dim().3;
    let row = |i: usize| keys.clone().filter(|&t| bits.get(i, t)).map(|t| map[[0, 0, i, t]]).sum();
    (0..map.dim().2).map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn masses_add_up_and_rows_have_their_blocks(
        tokens in 17usize..120,
        queries in 9usize..120,
        seed in any::<u64>(),
        gamma in 0.3f64..0.99,
        tau in prop::sample::select(vec![0.0, 0.1, 1.0]),
        rule in prop::sample::select(vec![BudgetRule::BlockCover, BudgetRule::TokensDiv]),
    ) {
        let queries = queries.min(tokens);
        let (q, k) = (tensor(seed, 0, 2, queries, 4), tensor(seed, 1, 1, tokens, 4));
        let config = small().with_gamma(gamma).with_tau(tau).with_rule(rule);
        let selection = select(q.view(), k.view(), &config).unwrap();
        selection.plan.validate().unwrap();
        for (number, head) in selection.heads.iter().enumerate() {
            let masses =
                [&head.columns, &head.distances, &head.column_blocks, &head.distance_blocks, &head.pooled];
            for mass in masses {
                prop_assert!((mass.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            }
            prop_assert!((0.0..=0.83256).contains(&head.divergence));
            prop_assert_eq!(head.query_aware, tau == 1.0 || (tau > 0.0 && head.divergence < tau));
            let bits = selection.plan.to_dense_mask(0, number).unwrap();
            for query in 0..queries {
                let own = tokens - queries + query;
                prop_assert!(bits.get(query, 0) && bits.get(query, own), "query {}", query);
            }
            if rule == BudgetRule::BlockCover && !head.query_aware {
                // The guarantee of the paper: the probe keeps gamma on its vertical lines.
                let kept = kept(&q, &k, &selection.plan, number);
                let probe: f64 = kept[queries - 8..].iter().sum::<f64>() / 8.0;
                prop_assert!(probe >= gamma - 1e-9, "{} below {}", probe, gamma);
            }
        }
    }

    #[test]
    fn a_larger_gamma_keeps_more(
        seed in any::<u64>(),
        tau in prop::sample::select(vec![0.0, 1.0]),
        rule in prop::sample::select(vec![BudgetRule::BlockCover, BudgetRule::TokensDiv]),
    ) {
        let (q, k) = (tensor(seed, 0, 1, 101, 4), tensor(seed, 1, 1, 101, 4));
        let config = small().with_tau(tau).with_rule(rule);
        let mut before = vec![vec![false; 13]; 13];
        for gamma in [0.2, 0.5, 0.8, 0.95, 1.5] {
            let selection = select(q.view(), k.view(), &config.clone().with_gamma(gamma)).unwrap();
            let now = blocks(&selection.plan, 0, 8);
            for (now, before) in now.iter().zip(&before) {
                prop_assert!(now.iter().zip(before).all(|(now, before)| *now || !before));
            }
            before = now;
        }
        // Above 1 nothing is left out.
        prop_assert!(before.iter().flatten().all(|on| *on));
    }

    /// A whole prompt and a part of it that ends where it ends probe the same queries: without query-aware
    /// heads, which look at all queries, rows of the part have the blocks that they have in the whole.
    #[test]
    fn lines_of_a_part_are_those_of_the_whole(seed in any::<u64>(), queries in 9usize..101) {
        let (q, k) = (tensor(seed, 0, 1, 101, 4), tensor(seed, 1, 1, 101, 4));
        let config = small().with_tau(0.0).with_gamma(0.7);
        let whole = select(q.view(), k.view(), &config).unwrap();
        let part = select(q.slice(s![.., .., 101 - queries.., ..]), k.view(), &config).unwrap();
        prop_assert_eq!(&whole.heads, &part.heads);
        let [whole, part] = [whole, part].map(|of| of.plan.to_dense_mask(0, 0).unwrap());
        for (query, key) in (0..queries).flat_map(|query| (0..101).map(move |key| (query, key))) {
            prop_assert_eq!(whole.get(101 - queries + query, key), part.get(query, key));
        }
    }

    #[test]
    fn shifts_and_scales_change_no_block(seed in any::<u64>(), factor in 0.25f64..4.0) {
        let (q, k) = (tensor(seed, 0, 1, 90, 4), tensor(seed, 1, 1, 90, 4));
        let config = small().with_gamma(0.7).with_tau(0.2);
        let plan = |q: &Array4<f64>, k: &Array4<f64>| {
            select(q.view(), k.view(), &config).unwrap().heads.remove(0)
        };
        let plain = plan(&q, &k);
        let moved = plan(&(&q * factor), &(&k / factor));
        prop_assert_eq!((plain.query_aware, plain.lines), (moved.query_aware, moved.lines));
        let shifted = plan(&q, &(&k + 0.5));
        prop_assert_eq!((plain.query_aware, plain.lines), (shifted.query_aware, shifted.lines));
        prop_assert!((plain.divergence - shifted.divergence).abs() < 1e-9);
    }

    /// Every row is within twice the mass it lacks of dense attention.
    #[test]
    fn the_error_is_bounded_by_the_mass_that_is_left_out(seed in any::<u64>(), tokens in 40usize..90) {
        let (q, k) = (tensor(seed, 0, 4, tokens, 6), tensor(seed, 1, 2, tokens, 6));
        let v = tensor(seed, 2, 2, tokens, 3);
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let (output, selection) = forward(inputs, &small().with_gamma(0.6)).unwrap();
        let exact = dense::forward(inputs, &dense::Config::new().with_mask(Mask::Causal)).unwrap();
        let norm = |x: ndarray::ArrayView1<'_, f64>| x.dot(&x).sqrt();
        for head in 0..4 {
            let values = v.slice(s![0, head / 2, .., ..]);
            let largest = values.rows().into_iter().map(norm).fold(0.0, f64::max);
            for (i, kept) in kept(&q, &k, &selection.plan, head).into_iter().enumerate() {
                let off = &output.out.slice(s![0, head, i, ..]) - &exact.out.slice(s![0, head, i, ..]);
                prop_assert!(norm(off.view()) <= 2.0 * (1.0 - kept) * largest + 1e-9);
            }
        }
    }
}

#[test]
fn short_sequences_and_parts_are_dense() {
    let whole = [(0, None), (1, None), (16, None), (40, Some(40)), (37, Some(33))];
    let whole = whole.map(|(tokens, budget)| (tokens, tokens, budget));
    let parts = [(0, 40, None), (1, 40, None), (8, 43, None), (20, 40, Some(40))];
    for (queries, tokens, budget) in whole.into_iter().chain(parts) {
        let (q, k) = (tensor(1, 0, 2, queries, 4), tensor(1, 1, 2, tokens, 4));
        let config = small().with_budget(budget, None);
        let inputs = Inputs::new(q.view(), k.view(), k.view());
        let (output, selection) = forward(inputs, &config).unwrap();
        assert!(selection.heads.is_empty());
        let exact = dense::forward(inputs, &dense::Config::new().with_mask(Mask::Causal)).unwrap();
        let off = output.out.iter().zip(&exact.out).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f64::max) < 1e-12, "{tokens}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (q, k) = (tensor(1, 0, 2, 20, 4), tensor(1, 1, 2, 24, 4));
    assert!(select(q.view(), k.view(), &small()).is_ok());
    let error = select(k.view(), q.view(), &small()).unwrap_err().to_string();
    assert!(error.contains("at most as many queries as keys, 20"), "{error}");
    let mut divided = small();
    divided.line_divisor = Some(0);
    for (config, part) in [
        (small().with_block(0), "`block` is 0"),
        (small().with_gamma(0.0), "`gamma` is 0"),
        (small().with_gamma(f64::NAN), "`gamma` is NaN"),
        (small().with_tau(f64::NAN), "`tau`"),
        (small().with_scale(f64::INFINITY), "`scale`"),
        (small().with_budget(Some(9), Some(8)), "`min_budget` is 9"),
        (divided, "`line_divisor` is 0"),
    ] {
        let error = select(k.view(), k.view(), &config).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

/// Whether a decision hangs on less than rounding may change.
fn is_close(selection: &Selection, config: &Config) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    let cuts = |mass: &Vec<f64>| {
        let mut sorted = mass.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mut sum = 0.0;
        let on_a_sum = sorted.iter().any(|x| {
            sum += x;
            near(sum, config.gamma)
        });
        on_a_sum || sorted.windows(2).any(|pair| (pair[0] - pair[1]).abs() < 1e-6)
    };
    selection.heads.iter().any(|head| {
        let keys = [&head.columns, &head.distances];
        near(head.divergence, config.tau)
            || [&head.column_blocks, &head.distance_blocks].into_iter().any(cuts)
            || config.budget_rule == BudgetRule::TokensDiv && keys.into_iter().any(cuts)
    })
}

/// Densities against plans of single heads.
fn check_densities(plan: &SparsePlan, got: &[f64]) {
    let shape = &plan.shape;
    let pairs = |head: usize| {
        let bits = plan.to_dense_mask(0, head).unwrap();
        let row = |i: usize| (0..shape.keys).filter(|&t| bits.get(i, t)).count();
        (0..shape.queries).map(row).sum::<usize>() as f64
    };
    let all: i64 = (0..shape.queries).map(|query| shape.position(query) + 1).sum();
    let expected: Vec<f64> = (0..shape.heads).map(|head| pairs(head) / all as f64).collect();
    assert_eq!(got, expected);
}

/// Plans equal block by block, and outputs within the tolerance of the golden files; false where a
/// decision is too close.
fn device_equals_reference(qkv: &[Array4<f64>; 3], config: &Config) -> bool {
    let Some(gpu) = gpu() else { return false };
    // As f32, which is what a device gets.
    let [q, k, v] = qkv.each_ref().map(|x| x.mapv(|x| x as f32));
    let [wide_q, wide_k, wide_v] = [&q, &k, &v].map(|x| x.mapv(f64::from));
    let inputs = Inputs::new(wide_q.view(), wide_k.view(), wide_v.view());
    let (want, selection) = forward(inputs, config).unwrap();
    let [q, k, v] = [q, k, v].map(|x| Tensor::from_array(&gpu, &x.view().into_dyn()).unwrap());
    let method = FlexPrefill::new(&gpu, config.clone()).unwrap();
    let output = method.forward(attn_flexprefill::Inputs::new(&q, &k, &v)).unwrap();
    assert_eq!(output.selection.heads.is_some(), !selection.heads.is_empty());
    if is_close(&selection, config) {
        return false;
    }
    let plan = output.selection.download().unwrap();
    assert_eq!(plan, selection.plan, "{config:?}");
    check_densities(&plan, &output.selection.densities().unwrap());
    let off = |got: &Tensor, want: Vec<f64>| {
        let got = got.to_vec::<f32>().unwrap();
        got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    };
    assert!(off(&output.out, want.out.iter().copied().collect()) <= 2e-5);
    assert!(off(&output.lse, want.lse.iter().copied().collect()) <= 2e-5);
    true
}

#[test]
fn smoke_the_device_selects_what_the_reference_selects() {
    let mut seen = 0;
    let whole = [(130, 130), (97, 97), (64, 64), (201, 201), (16, 16), (1, 1)];
    // Parts of prompts: at a bound between blocks, inside of a block, and too short.
    let parts = [(90, 130), (71, 200), (33, 201), (8, 64)];
    for (seed, (queries, tokens)) in (1..).zip(whole.into_iter().chain(parts)) {
        let of = |stream, heads, tokens| tensor(seed, stream, heads, tokens, 8);
        let qkv = [of(0, 4, queries), of(1, 2, tokens), of(2, 2, tokens)];
        for tau in [0.0, 0.15, 1.0] {
            for rule in [BudgetRule::BlockCover, BudgetRule::TokensDiv] {
                let config = small().with_gamma(0.61).with_tau(tau).with_rule(rule);
                seen += usize::from(device_equals_reference(&qkv, &config));
                let both = config.with_slash_both().with_budget(Some(20), Some(60));
                seen += usize::from(device_equals_reference(&qkv, &both));
            }
        }
    }
    assert!(gpu().is_none() || seen > 20, "only {seen} cases had clear decisions");
}

#[test]
fn wrong_calls_are_refused_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let x = |tokens: usize| Tensor::zeros(&gpu, &[1, 1, tokens, 4], attn_wgpu::DType::F32).unwrap();
    let method = FlexPrefill::new(&gpu, small()).unwrap();
    let error = method.select(&x(24), &x(20)).unwrap_err().to_string();
    assert!(error.contains("at most as many queries as keys, 20"), "{error}");
    // 37 queries behind 13 keys: three are in front of a bound.
    let selection = method.select(&x(37), &x(50)).unwrap();
    assert_eq!(selection.lead.as_ref().unwrap().shape().queries, 3);
    for queries in [3, 34, 38] {
        let (q, k) = (x(queries), x(50));
        let inputs = attn_flexprefill::Inputs::new(&q, &k, &k);
        assert!(method.attend(inputs, &selection).is_err(), "{queries}");
    }
    let attention = dense::Config::new().with_mask(Mask::Causal).with_scale(0.5);
    let both = FlexPrefill::with_attention(&gpu, small().with_scale(0.5), attention.clone());
    assert!(both.unwrap_err().to_string().contains("`scale` is 0.5"));
    let full = FlexPrefill::with_attention(&gpu, small(), attention.clone().with_mask(Mask::Full));
    assert!(full.unwrap_err().to_string().contains("`mask` is full"));
    let own = FlexPrefill::with_attention(&gpu, small(), attention).unwrap();
    assert_eq!(own.config().scale, Some(0.5));
    assert!(FlexPrefill::new(&gpu, small().with_block(0)).is_err());
    assert_eq!(method.select(&x(0), &x(0)).unwrap().plan.parts()[0].groups(), 0);
}
