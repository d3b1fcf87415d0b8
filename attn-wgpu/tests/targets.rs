//! Gradients in callers' tensors: the bits of new ones, wherever they lie, and nothing beside them written.

mod common;

use attn_core::dense::Config;
use attn_core::plan::{Near, PlanShape, Share};
use attn_core::testing::{HostInputs, Values, fill};
use attn_core::{BitMask, Error as CoreError, Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::{Attention, Cotangents, Grads, Saved, Targets};
use attn_wgpu::linear_attention::{self, LinearAttention};
use attn_wgpu::plan::{self, DevicePlan, PlanAttention};
use attn_wgpu::{DType, Error, Gpu, Tensor, ops};
use common::frame::{Frame, Place};
use common::{Uploaded, cotangents, gpu, masked, normal, open, shape, upload};

const FLOATS: [DType; 2] = [DType::F32, DType::F16];

/// A backward pass of dense attention, and its gradients in new tensors.
struct Dense {
    attention: Attention,
    saved: Saved,
    d_out: Tensor,
    grads: Grads,
}

impl Dense {
    fn new(gpu: &Gpu, inputs: &HostInputs, config: Config, dtype: DType) -> Dense {
        let uploaded = Uploaded::as_type(gpu, inputs, dtype).unwrap();
        let attention = Attention::new(gpu, config).unwrap();
        let (_, saved) = attention.forward_saved(uploaded.view()).unwrap();
        let (d_out, _) = cotangents(&inputs.shape, 7);
        let d_out = upload(gpu, &d_out, &inputs.shape.out(), dtype).unwrap();
        let grads = attention.backward(&saved, Cotangents { out: &d_out, lse: None }).unwrap();
        Dense { attention, saved, d_out, grads }
    }

    fn write(&self, targets: Targets<'_>) -> attn_wgpu::Result<()> {
        let cotangents = Cotangents { out: &self.d_out, lse: None };
        self.attention.backward_into(&self.saved, cotangents, targets)
    }

    /// All gradients in tensors that lie at `place`.
    fn check(&self, gpu: &Gpu, place: Place) {
        let Grads { dq, dk, dv, d_sinks } = &self.grads;
        let frame = |like: &Tensor, place| Frame::new(gpu, like.shape(), like.dtype(), place);
        let frames = [dq, dk, dv].map(|like| frame(like, place));
        let sinks = if place == Place::TokenMajor { Place::Odd } else { place };
        let sinks = d_sinks.as_ref().map(|like| (frame(like, sinks), like));
        let [q, k, v] = &frames;
        let targets = Targets {
            dq: Some(&q.target),
            dk: Some(&k.target),
            dv: Some(&v.target),
            d_sinks: sinks.as_ref().map(|(frame, _)| &frame.target),
        };
        self.write(targets).unwrap();
        for (name, frame, want) in [("dq", q, dq), ("dk", k, dk), ("dv", v, dv)] {
            frame.check(&format!("{name} {place:?} {:?}", dq.dtype()), want);
        }
        if let Some((frame, want)) = sinks {
            frame.check(&format!("d_sinks {place:?}"), want);
        }
    }
}

#[test]
fn dense_attention() {
    let Some(gpu) = gpu() else { return };
    let bits = BitMask::from_fn(37, 37, |query, key| (query * 7 + key * 5) % 3 == 0);
    let configs = [
        masked(Mask::Causal),
        masked(Mask::GlobalWindow { window: 6, global: 2 })
            .with_modifier(Modifier::alibi(&alibi_slopes(4))),
        masked(Mask::Bits(bits)),
    ];
    for (config, dims) in configs.into_iter().zip([[16, 8], [8, 8], [7, 5]]) {
        let inputs = normal(shape([2, 4, 2, 37, 37, dims[0], dims[1]]), 3).with_random_sinks(2);
        for dtype in FLOATS {
            let dense = Dense::new(&gpu, &inputs, config.clone(), dtype);
            for place in Place::all(&[1, 1, 1, dims[0].min(dims[1])], dtype) {
                dense.check(&gpu, place);
            }
        }
    }
    // Without queries, and without keys.
    for [queries, keys] in [[0, 9], [9, 0]] {
        let inputs = normal(shape([1, 2, 1, queries, keys, 8, 8]), 3).with_random_sinks(2);
        Dense::new(&gpu, &inputs, masked(Mask::Full), DType::F32).check(&gpu, Place::Odd);
    }
}

/// What nobody wants is not computed, and changes no bit of the others.
#[test]
fn some_gradients() {
    // Of its own: what others record would be in the profile.
    let Some(gpu) = open(Gpu::builder()) else { return };
    let inputs = normal(shape([1, 2, 1, 21, 33, 16, 16]), 4);
    let dense = Dense::new(&gpu, &inputs, masked(Mask::Causal), DType::F32);
    let Grads { dq, dk, dv, .. } = &dense.grads;
    let frame = |like: &Tensor| Frame::new(&gpu, like.shape(), DType::F32, Place::Aligned);
    for wanted in 0..8 {
        let frames = [dq, dk, dv].map(frame);
        let of = |i: usize| (wanted >> i & 1 == 1).then_some(&frames[i].target);
        dense.write(Targets { dq: of(0), dk: of(1), dv: of(2), d_sinks: None }).unwrap();
        for ((i, frame), want) in frames.iter().enumerate().zip([dq, dk, dv]) {
            if of(i).is_some() {
                frame.check(&format!("{wanted} {i}"), want);
            }
        }
    }
    let alone = frame(dq);
    let targets = Targets { dq: Some(&alone.target), ..Targets::default() };
    let ((), ran) = gpu.profile(|| dense.write(targets)).unwrap();
    let names: Vec<&str> = ran.kernels.iter().map(|kernel| kernel.kernel.as_ref()).collect();
    assert!(names.iter().any(|name| name.starts_with("attention_backward_q")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("attention_backward_kv")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("copy")), "{names:?}");
}

/// Tensors that share a buffer with each other and with inputs: no binding may meet another one, so that
/// some are copied.
#[test]
fn neighbours_in_one_buffer() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 2, 13, 13, 4, 4]), 5);
    let dense = Dense::new(&gpu, &inputs, masked(Mask::Causal), DType::F32);
    let all = Tensor::zeros(&gpu, &[6 * 104 + 200], DType::F32).unwrap();
    // 104 elements are no multiple of what bindings are aligned to.
    let part = |i: usize| all.narrow(0, 104 * i, 104).unwrap().reshape(&[1, 2, 13, 4]).unwrap();
    let [dq, q, dk, k, dv, v] = [0, 1, 2, 3, 4, 5].map(part);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    for (from, to) in [(&uploaded.q, &q), (&uploaded.k, &k), (&uploaded.v, &v)] {
        ops::copy(from, to).unwrap();
    }
    let given = attn_wgpu::attention::Inputs::new(&q, &k, &v);
    let (_, saved) = dense.attention.forward_saved(given).unwrap();
    let cotangents = Cotangents { out: &dense.d_out, lse: None };
    let targets = Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv), d_sinks: None };
    dense.attention.backward_into(&saved, cotangents, targets).unwrap();
    let floats = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap();
    let want = [&dense.grads.dq, &dense.grads.dk, &dense.grads.dv].map(floats);
    assert!([&dq, &dk, &dv].map(floats) == want);
    // In place of the inputs.
    let targets = Targets { dq: Some(&q), dk: Some(&k), dv: Some(&v), d_sinks: None };
    dense.attention.backward_into(&saved, cotangents, targets).unwrap();
    assert!([&q, &k, &v].map(floats) == want);
}

#[test]
fn targets_that_do_not_fit() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 9, 9, 8, 8]), 6);
    let dense = Dense::new(&gpu, &inputs, masked(Mask::Causal), DType::F32);
    let short = Tensor::zeros(&gpu, &[1, 2, 8, 8], DType::F32).unwrap();
    let half = Tensor::zeros(&gpu, &[1, 1, 9, 8], DType::F16).unwrap();
    let repeated = Tensor::zeros(&gpu, &[1, 1, 9, 1], DType::F32).unwrap();
    let repeated = repeated.expand(&[1, 1, 9, 8]).unwrap();
    let sinks = Tensor::zeros(&gpu, &[2], DType::F32).unwrap();
    let refused = |targets| match dense.write(targets) {
        Err(Error::Core(error)) => error,
        other => panic!("{other:?}"),
    };
    let none = Targets::default();
    let error = refused(Targets { dq: Some(&short), ..none });
    assert!(matches!(error, CoreError::Shape { arg: "dq", .. }), "{error}");
    let error = refused(Targets { dk: Some(&half), ..none });
    assert!(matches!(error, CoreError::Dtype { arg: "dk", .. }), "{error}");
    let error = refused(Targets { dv: Some(&repeated), ..none });
    assert!(matches!(error, CoreError::Shape { arg: "dv", .. }), "{error}");
    let error = refused(Targets { d_sinks: Some(&sinks), ..none });
    assert!(matches!(error, CoreError::Config { .. }), "{error}");
}

#[test]
fn attention_over_plans() {
    let Some(gpu) = gpu() else { return };
    for [dim_qk, dim_v] in [[16, 8], [7, 5]] {
        let inputs = normal(shape([1, 4, 2, 40, 40, dim_qk, dim_v]), 12);
        let plan = common::plans::blocks(
            PlanShape::from(&inputs.shape),
            Share::PerKvHead,
            true,
            [20, 4],
            40,
        );
        let near = Near { sink: 3, window: 9, grow: false };
        let plan = plan.with_near(near).canonicalise().unwrap();
        let config = common::plans::config(&plan);
        let attention = PlanAttention::new(&gpu, config).unwrap();
        let device = DevicePlan::upload(&gpu, &plan).unwrap();
        for dtype in FLOATS {
            let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
            let (_, saved) = attention.forward_saved(uploaded.view(), &device).unwrap();
            let (d_out, _) = cotangents(&inputs.shape, 7);
            let d_out = upload(&gpu, &d_out, &inputs.shape.out(), dtype).unwrap();
            let cotangents = Cotangents { out: &d_out, lse: None };
            let grads = attention.backward(&saved, cotangents).unwrap();
            let like = [&grads.dq, &grads.dk, &grads.dv];
            for place in Place::all(&[1, 1, 1, dim_qk.min(dim_v)], dtype) {
                let frames = like.map(|like| Frame::new(&gpu, like.shape(), dtype, place));
                let [dq, dk, dv] = frames.each_ref().map(|frame| Some(&frame.target));
                let targets = plan::Targets { dq, dk, dv, d_gates: &[] };
                attention.backward_into(&saved, cotangents, targets).unwrap();
                for (frame, want) in frames.iter().zip(like) {
                    frame.check(&format!("{place:?} {dtype:?}"), want);
                }
                let only = Frame::new(&gpu, like[2].shape(), dtype, place);
                let targets = plan::Targets { dv: Some(&only.target), ..plan::Targets::default() };
                attention.backward_into(&saved, cotangents, targets).unwrap();
                only.check(&format!("only dv, {place:?} {dtype:?}"), like[2]);
            }
            let short = Tensor::zeros(&gpu, &[1, 4, 39, dim_qk], dtype).unwrap();
            let targets = plan::Targets { dq: Some(&short), ..plan::Targets::default() };
            let refused = attention.backward_into(&saved, cotangents, targets);
            assert!(matches!(refused, Err(Error::Core(CoreError::Shape { arg: "dq", .. }))));
        }
    }
}

#[test]
fn linear_attention_and_its_states() {
    let Some(gpu) = gpu() else { return };
    for [dim_qk, dim_v] in [[16, 8], [7, 5]] {
        for dtype in FLOATS {
            let up = |seed, shape: &[usize], dtype| {
                let data = fill(seed, 1, Values::Normal, shape.iter().product());
                upload(&gpu, &data, shape, dtype).unwrap()
            };
            let q = up(1, &[2, 4, 70, dim_qk], dtype);
            let k = up(2, &[2, 2, 70, dim_qk], dtype);
            let v = up(3, &[2, 2, 70, dim_v], dtype);
            let kv = up(4, &[2, 4, dim_qk, dim_v], DType::F32);
            let d_out = up(5, &[2, 4, 70, dim_v], dtype);
            let d_kv = up(6, &[2, 4, dim_qk, dim_v], DType::F32);
            let attention = LinearAttention::new(&gpu, &[0.0, 0.1, 0.2, 0.3]).unwrap();
            let inputs = linear_attention::Inputs::new(&q, &k, &v).with_state(&kv);
            let (output, saved) = attention.forward_saved(inputs).unwrap();
            let cotangents = linear_attention::Cotangents::new(&d_out).with_state(&d_kv);
            let grads = attention.backward(&saved, cotangents).unwrap();
            let like = [&grads.dq, &grads.dk, &grads.dv];
            for place in Place::all(&[1, 1, 1, dim_qk.min(dim_v)], dtype) {
                let what = format!("{place:?} {dtype:?} {dim_qk}");
                let out = Frame::new(&gpu, output.out.shape(), dtype, place);
                let state = Frame::new(&gpu, kv.shape(), DType::F32, place);
                attention.forward_into(inputs, &out.target, &state.target).unwrap();
                out.check(&what, &output.out);
                state.check(&what, &output.kv);

                let frames = like.map(|like| Frame::new(&gpu, like.shape(), dtype, place));
                let [dq, dk, dv] = frames.each_ref().map(|frame| Some(&frame.target));
                let state = Frame::new(&gpu, kv.shape(), DType::F32, place);
                let d_kv = Some(&state.target);
                let targets = linear_attention::Targets { dq, dk, dv, d_kv };
                attention.backward_into(&saved, cotangents, targets).unwrap();
                for (frame, want) in frames.iter().zip(like) {
                    frame.check(&what, want);
                }
                state.check(&what, &grads.d_kv);
                let only = Frame::new(&gpu, like[1].shape(), dtype, place);
                let targets = linear_attention::Targets {
                    dk: Some(&only.target),
                    ..linear_attention::Targets::default()
                };
                attention.backward_into(&saved, cotangents, targets).unwrap();
                only.check(&what, like[1]);
            }
            let targets = linear_attention::Targets { dk: Some(&q), ..Default::default() };
            let refused = attention.backward_into(&saved, cotangents, targets);
            assert!(matches!(refused, Err(Error::Core(CoreError::Shape { arg: "dk", .. }))));
        }
    }
}
