//! Soft-cap and modifiers: what they do to a logit, in which order, and what they refuse.

use attn_core::dense::{self, Config, Cotangents, Inputs, Output};
use attn_core::ndarray::{Array4, s};
use attn_core::testing::strategies::case;
use attn_core::testing::{HostArrays, simple_f32, simple_f32_backward};
use attn_core::{
    BitMask, Error, Lengths, Mask, Modifier, ModifierArgs, ModifierKind, ModifierParam,
    alibi_slopes,
};
use proptest::prelude::*;

use super::{bits, close, config, normal, row_bits, shape};

fn forward(arrays: &HostArrays, config: &Config) -> Output {
    dense::forward(arrays.view(), config).unwrap()
}

/// Keeps the pairs for which `keep` is true, and has no body that anyone would compile.
fn keep(keep: impl Fn(&ModifierArgs) -> bool + Send + Sync + 'static) -> Modifier {
    Modifier::mask("keep", "").with_host(move |_, at| f64::from(keep(at)))
}

#[test]
fn scale_then_cap_then_modifier_then_mask() {
    let one = |x| Array4::from_elem((1, 1, 1, 1), x);
    let arrays = HostArrays { q: one(3.0), k: one(2.0), v: one(1.0), sinks: None };
    let modifier = Modifier::score("affine", "").with_host(|score, _| 10.0 * score + 1.0);
    let config = Config::new().with_soft_cap(4.0).with_modifier(modifier);
    for scale in [0.5, -0.5, 0.0] {
        let want = 10.0 * (4.0 * (scale * 6.0 / 4.0_f64).tanh()) + 1.0;
        let output = forward(&arrays, &config.clone().with_scale(scale));
        assert!((output.lse[[0, 0, 0]] - want).abs() < 1e-13);
        assert!((output.row_max[[0, 0, 0]] - want).abs() < 1e-13);
        assert_eq!(output.product_bound[[0, 0, 0]], scale.abs() * 6.0);
    }
    // The mask comes last: no modifier brings a key back.
    let nobody = Mask::Bits(BitMask::from_fn(1, 1, |_, _| false));
    assert_eq!(forward(&arrays, &config.with_mask(nobody)).lse[[0, 0, 0]], f64::NEG_INFINITY);
}

#[test]
fn modifiers_see_batch_head_position_and_key() {
    let mut arrays = normal([2, 3, 1, 4, 6, 2, 2]);
    arrays.q.fill(0.0);
    let place = |_: f64, at: &ModifierArgs| {
        (1000 * at.batch + 100 * at.head + at.key) as f64 + 10.0 * at.position as f64
    };
    let config = config(Mask::Causal).with_modifier(Modifier::score("place", "").with_host(place));
    for ((b, h, i), &max) in forward(&arrays, &config).row_max.indexed_iter() {
        // The last key that query i sees is its own position, i + 2.
        assert_eq!(max, (1000 * b + 100 * h + 11 * (i + 2)) as f64);
    }
    // More queries than keys: positions are negative, and the key stands before them.
    let arrays = HostArrays { q: arrays.q, ..normal([2, 3, 1, 4, 1, 2, 2]) };
    let config = config.with_mask(Mask::Full);
    assert_eq!(forward(&arrays, &config).row_max[[0, 0, 0]], -30.0);
}

#[test]
fn documents_have_positions_of_their_own() {
    let HostArrays { q, k, v, .. } = normal([2, 3, 1, 20, 30, 16, 9]);
    let (cu_q, cu_k) = (vec![0, 7, 7, 15, 20], vec![0, 12, 16, 16, 30]);
    for inner in [Mask::Full, Mask::Causal, Mask::Window { left: 4, right: 1 }] {
        for modifier in [Modifier::alibi(&alibi_slopes(3)), Modifier::temperature(&[0.5, 0.7, 2.0])]
        {
            let mask = Mask::Documents {
                cu_q: cu_q.clone(),
                cu_k: cu_k.clone(),
                inner: Box::new(inner.clone()),
            };
            let config = Config::new().with_modifier(modifier);
            let inputs = Inputs::new(q.view(), k.view(), v.view());
            let packed = dense::forward(inputs, &config.clone().with_mask(mask)).unwrap();
            for d in 0..4 {
                let inputs = Inputs::new(
                    q.slice(s![.., .., cu_q[d]..cu_q[d + 1], ..]),
                    k.slice(s![.., .., cu_k[d]..cu_k[d + 1], ..]),
                    v.slice(s![.., .., cu_k[d]..cu_k[d + 1], ..]),
                );
                let alone =
                    dense::forward(inputs, &config.clone().with_mask(inner.clone())).unwrap();
                for ((b, h, i), lse) in alone.lse.indexed_iter() {
                    let at = [b, h, cu_q[d] + i];
                    assert_eq!(lse.to_bits(), packed.lse[at].to_bits());
                    assert_eq!(
                        alone.out.slice(s![b, h, i, ..]),
                        packed.out.slice(s![b, h, at[2], ..])
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A key that a modifier masks might as well have been masked: three ways to say it.
    #[test]
    fn masked_by_a_modifier_is_masked(case in case(100_000), lowest in prop_oneof![Just(-1e30), Just(f64::NEG_INFINITY), Just(-3e38)]) {
        let arrays = case.inputs().to_f64().unwrap();
        let lengths = case.shape.lengths();
        let kept = |at: &ModifierArgs| (at.position + 3 * at.key as i64).rem_euclid(4) != 1;
        let bits_of = BitMask::from_fn(lengths.queries, lengths.keys, |i, t| {
            let place = case.config.mask.place(lengths, i);
            let at = |key| ModifierArgs { key, position: place.position, ..ModifierArgs::default() };
            case.config.mask.allows(lengths, i, t) && kept(&at(t - place.first_key))
        });
        let want = forward(&arrays, &config(Mask::Bits(bits_of.clone())));
        let as_mask = case.config.clone().with_modifier(keep(kept));
        prop_assert_eq!(bits(&forward(&arrays, &as_mask)), bits(&want));
        let score = Modifier::score("keep", "")
            .with_host(move |score, at| if kept(at) { score } else { lowest })
            .with_host_derivative(|_, _| 1.0);
        let as_score = case.config.clone().with_modifier(score);
        prop_assert_eq!(bits(&forward(&arrays, &as_score)), bits(&want));

        let d_out = arrays.q.slice(s![.., .., .., ..1]).broadcast(want.out.dim()).map(|x| x.to_owned());
        let Some(d_out) = d_out else { return Ok(()) };
        let cotangents = Cotangents { out: d_out.view(), lse: None };
        let want_grads = dense::backward(arrays.view(), &config(Mask::Bits(bits_of)), &want, cotangents).unwrap();
        for config in [as_mask, as_score] {
            let grads = dense::backward(arrays.view(), &config, &want, cotangents).unwrap();
            prop_assert!(grads == want_grads);
            let inputs = case.inputs();
            let f32_out = simple_f32(&inputs, &config).unwrap().out;
            prop_assert!(f32_out.iter().all(|x| x.is_finite()));
        }
    }

    /// A key that is masked by a modifier may hold anything, as far as the modifier does not mind.
    #[test]
    fn what_a_modifier_masks_does_not_poison(case in case(100_000), key in any::<prop::sample::Index>()) {
        prop_assume!(case.shape.keys > 0);
        let bad = key.index(case.shape.keys);
        let lengths = case.shape.lengths();
        let mask = Mask::Window { left: 9, right: 9 };
        let mut arrays = case.inputs().to_f64().unwrap();
        let modified = config(mask.clone()).with_modifier(keep(move |at| at.key != bad));
        let clean = forward(&arrays, &modified);
        arrays.k.slice_mut(s![.., .., bad, ..]).fill(f64::NAN);
        arrays.v.slice_mut(s![.., .., bad, ..]).fill(f64::INFINITY);
        let output = forward(&arrays, &modified);
        prop_assert_eq!(bits(&output), bits(&clean));
        let d_out = Array4::ones(output.out.dim());
        let cotangents = Cotangents { out: d_out.view(), lse: None };
        let grads = dense::backward(arrays.view(), &modified, &output, cotangents).unwrap();
        prop_assert!(grads.dq.iter().chain(&grads.dk).chain(&grads.dv).all(|x| x.is_finite()));
        prop_assert!(grads.dk.slice(s![.., .., bad, ..]).iter().all(|&x| x == 0.0));
        prop_assert!(grads.dv.slice(s![.., .., bad, ..]).iter().all(|&x| x == 0.0));
        let empty = (0..lengths.queries).filter(|&i| mask.keys(lengths, i).all(|t| t == bad));
        for i in empty {
            prop_assert!(output.lse.slice(s![.., .., i]).iter().all(|&lse| lse == f64::NEG_INFINITY));
        }
    }

    #[test]
    fn a_mask_modifier_is_the_mask_it_says(case in case(100_000), left in 0..20_i64) {
        let arrays = case.inputs().to_f64().unwrap();
        let near = keep(move |at| (0..=left).contains(&(at.position - at.key as i64)));
        let window = config(Mask::Window { left: left as usize, right: 0 });
        let got = forward(&arrays, &Config::new().with_modifier(near));
        prop_assert_eq!(bits(&got), bits(&forward(&arrays, &window)));
    }

    #[test]
    fn soft_caps_bound_and_far_ones_do_nothing(case in case(100_000), cap in 0.1..100.0_f64) {
        let arrays = case.inputs().to_f64().unwrap();
        let plain = forward(&arrays, &case.config);
        let capped = forward(&arrays, &case.config.clone().with_soft_cap(cap));
        prop_assert!(capped.row_max.iter().all(|&max| max <= cap && (max >= -cap || max == f64::NEG_INFINITY)));
        // cap tanh(x / cap) = x - x^3 / (3 cap^2) + ..
        let largest = |array: &Array4<f64>| array.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let logit = largest(&arrays.q) * largest(&arrays.k) * (case.shape.dim_qk as f64).sqrt();
        let far = forward(&arrays, &case.config.clone().with_soft_cap(1e6 * (1.0 + logit)));
        let moved = 1e-12 * (1.0 + logit);
        close(&far.lse, &plain.lse, moved)?;
        close(&far.out, &plain.out, 2.0 * moved * largest(&arrays.v))?;
    }

    /// The shipped modifiers: derivative by differences, bias by its formula.
    #[test]
    fn examples_are_differentiable(
        heads in 1..20_usize, score in -9.0..9.0_f64, head in 0..25_usize, position in -9..40_i64, key in 0..40_usize,
    ) {
        let at = ModifierArgs { batch: 0, head, position, key };
        let slopes = alibi_slopes(heads);
        let factors = [0.5_f32, 1.25, 2.0];
        for modifier in [Modifier::alibi(&slopes), Modifier::temperature(&factors)] {
            let host = modifier.host().unwrap();
            let by_difference = host(score + 0.5, &at) - host(score - 0.5, &at);
            prop_assert!((by_difference - modifier.host_derivative().unwrap()(score, &at)).abs() < 1e-12);
            prop_assert_eq!(modifier.validate(), Ok(()));
            prop_assert!(modifier.derivative().is_some());
        }
        let bias = Modifier::alibi(&slopes).host().unwrap()(0.0, &at);
        let slope = f64::from(slopes[head.min(heads - 1)]);
        prop_assert_eq!(bias, -slope * (position - key as i64).abs() as f64);
        let factor = f64::from(factors[position.clamp(0, 2) as usize]);
        prop_assert_eq!(Modifier::temperature(&factors).host().unwrap()(score, &at), score * factor);
    }
}

/// The slopes of the paper, and what its code does where the number is no power of two.
#[test]
fn slopes_of_alibi() {
    let powers =
        |exponents: &[f64]| exponents.iter().map(|x| (-x).exp2() as f32).collect::<Vec<_>>();
    assert!(alibi_slopes(0).is_empty());
    assert_eq!(alibi_slopes(1), powers(&[8.0]));
    assert_eq!(alibi_slopes(8), powers(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    assert_eq!(alibi_slopes(3), powers(&[4.0, 8.0, 2.0]));
    assert_eq!(alibi_slopes(6), powers(&[2.0, 4.0, 6.0, 8.0, 1.0, 3.0]));
    let twelve = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.5, 1.5, 2.5, 3.5];
    assert_eq!(alibi_slopes(12), powers(&twelve));
    assert_eq!(alibi_slopes(16).len(), 16);
}

#[test]
fn builders_and_equality() {
    let modifier = || {
        Modifier::score("warm", "return score * t + bias(key);")
            .with_derivative("return t;")
            .with_scalar("t", 2.0)
            .with_table("bias", vec![1.0, 2.0])
    };
    let warm = modifier();
    assert_eq!((warm.name(), warm.kind()), ("warm", ModifierKind::Score));
    assert_eq!(warm.body(), "return score * t + bias(key);");
    assert_eq!(warm.derivative(), Some("return t;"));
    let params = [
        ("t".to_owned(), ModifierParam::Scalar(2.0)),
        ("bias".to_owned(), ModifierParam::Table(vec![1.0, 2.0])),
    ];
    assert_eq!(warm.params(), params);
    assert!(warm.host().is_none() && warm.host_derivative().is_none());
    assert_eq!(warm, modifier());
    assert_ne!(warm, modifier().with_scalar("u", 1.0));
    assert_ne!(warm, Modifier::mask("warm", warm.body()));
    let with_host = modifier().with_host(|score, _| score);
    assert_ne!(warm, with_host);
    assert_eq!(with_host, with_host.clone());
    assert_ne!(
        with_host,
        modifier().with_host(|score, _| score),
        "closures have no other identity"
    );
    assert_eq!(
        Config::new().with_modifier(with_host.clone()),
        Config::new().with_modifier(with_host.clone())
    );
    assert!(format!("{with_host:?}").starts_with("Modifier { name: \"warm\""));
}

#[test]
fn parameters_that_wgsl_could_not_name_are_refused() {
    let refused = |modifier: Modifier| match Config::new().with_modifier(modifier).validate() {
        Err(error @ Error::Config { arg: "modifier", .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let new = || Modifier::score("m", "return score;");
    for name in [
        "", "1a", "_a", "A", "aB", "a-b", "a b", "ä", "a(", "score", "batch", "head", "position",
        "key",
    ] {
        assert!(refused(new().with_scalar(name, 1.0)).contains(&format!("`{name}`")));
        assert!(refused(new().with_table(name, vec![1.0])).contains("in modifier m"));
    }
    assert!(refused(new().with_scalar("a", 1.0).with_table("a", vec![1.0])).contains("differ"));
    assert!(refused(new().with_table("a", vec![])).contains("at least one number"));
    assert_eq!(new().with_scalar("a_1", 1.0).with_table("b", vec![f32::NAN]).validate(), Ok(()));
}

#[test]
fn wrong_configurations_are_refused() {
    let inputs = attn_core::testing::HostInputs::random(
        shape([1, 2, 1, 3, 4, 5, 6]),
        1,
        attn_core::testing::Values::Normal,
    );
    let arrays = inputs.to_f64().unwrap();
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = dense::forward(arrays.view(), &Config::new().with_soft_cap(cap)).unwrap_err();
        assert!(matches!(error, Error::Config { arg: "soft_cap", .. }));
    }
    let without = Config::new().with_modifier(Modifier::score("mine", "return score;"));
    assert_eq!(without.validate(), Ok(()), "enough for a kernel");
    let error = dense::forward(arrays.view(), &without).unwrap_err();
    assert!(matches!(error, Error::Config { arg: "modifier", .. }));
    assert!(
        error.to_string().contains("mine") && error.to_string().contains("with_host"),
        "{error}"
    );
    assert_eq!(simple_f32(&inputs, &without).unwrap_err(), error);

    let forward_only = Modifier::score("mine", "return score;").with_host(|score, _| score);
    let config = Config::new().with_modifier(forward_only);
    let output = forward(&arrays, &config);
    let cotangents = Cotangents { out: output.out.view(), lse: None };
    let error = dense::backward(arrays.view(), &config, &output, cotangents).unwrap_err();
    assert!(matches!(error, Error::Config { arg: "modifier", .. }));
    assert!(
        error.to_string().contains("mine") && error.to_string().contains("derivative"),
        "{error}"
    );
    assert_eq!(simple_f32_backward(&inputs, &config, &[0.0; 36], None).unwrap_err(), error);
    assert_eq!(
        row_bits(&output, [0, 0, 0]),
        row_bits(&forward(&arrays, &Config::new()), [0, 0, 0])
    );
    assert_eq!(Lengths::new(3, 4).position(0), 1);
}
