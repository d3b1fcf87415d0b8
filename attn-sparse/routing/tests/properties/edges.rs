//! Calls that are empty or wrong, values that nobody may read, and what must not depend on the run.

use attn_routing::{
    Centroids, Config, Cotangents, Inputs, Routing, Targets, Tensor, Uninitialised,
};
use attn_wgpu::testing::{Frame, Place, gpu};
use attn_wgpu::{DType, ops};
use ndarray::{Array4, Axis, s};

use crate::support::{centroids, close, download, tensor, upload};

fn bits(x: &Tensor) -> Vec<u32> {
    x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn runs_and_neighbours_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let shape = [3, 2, 33, 8];
    let [q, k, v, d] = [0, 1, 2, 3].map(|stream| tensor(21, stream, shape));
    let means = centroids(21, 2, 4, 8);
    for (causal, shared) in [(false, false), (true, true), (true, false)] {
        let mut config = Config::new(4, 9).with_shared_qk(shared);
        config.causal = causal;
        let layer = Routing::new(&gpu, config).unwrap();
        let run = |entries: std::ops::Range<usize>, heads: std::ops::Range<usize>| {
            let of = |x: &Array4<f64>| {
                upload(&gpu, &x.slice(s![entries.clone(), heads.clone(), .., ..]).to_owned())
            };
            let (q, k, v, d) = (of(&q), of(&k), of(&v), of(&d));
            let mut means = means.clone();
            means.means = means.means.slice(s![heads.clone(), .., ..]).to_owned();
            means.sums = means.means.clone();
            means.counts = means.counts.slice(s![heads.clone(), ..]).to_owned();
            let means = Centroids::upload(&gpu, &means).unwrap();
            let inputs = Inputs::new(&q, &k, &v);
            let (output, saved) = layer.forward_saved(inputs, None, &means).unwrap();
            let grads = layer.backward(&saved, Cotangents { out: &d }).unwrap();
            let next = layer.update(inputs, &output.routes, &means).unwrap();
            ([output.out, grads.dq, grads.dk, grads.dv].map(|x| download(&x)), bits(&next.means))
        };
        let (all, next) = run(0..3, 0..2);
        let (again, next_again) = run(0..3, 0..2);
        assert!(all == again && next == next_again, "causal {causal}, shared {shared}");
        let (alone, _) = run(1..2, 1..2);
        for (all, alone) in all.iter().zip(&alone) {
            assert_eq!(
                &all.slice(s![1..2, 1..2, .., ..]),
                alone,
                "causal {causal}, shared {shared}"
            );
        }
    }
}

/// Probabilities are stored for some clusters at a time; how many makes no difference.
#[test]
fn parts_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let shape = [2, 2, 33, 8];
    let [q, k, v, d] = [0, 1, 2, 3].map(|stream| upload(&gpu, &tensor(26, stream, shape)));
    let means = Centroids::upload(&gpu, &centroids(26, 2, 5, 8)).unwrap();
    let layer = Routing::new(&gpu, Config::new(5, 9).with_shared_qk(false)).unwrap();
    let run = |layer: &Routing| {
        let inputs = Inputs::new(&q, &k, &v);
        let (output, saved) = layer.forward_saved(inputs, None, &means).unwrap();
        let grads = layer.backward(&saved, Cotangents { out: &d }).unwrap();
        [output.out, grads.dq, grads.dk, grads.dv].map(|x| bits(&x))
    };
    let whole = run(&layer);
    // One cluster, and three of 9 queries by 12 keys.
    for bytes in [1, 3 * 9 * 12 * 4] {
        assert_eq!(run(&layer.clone().with_part_bytes(bytes)), whole, "{bytes}");
    }
}

/// Values that no centroid took, and padding, may be NaN.
#[test]
fn what_is_not_chosen_is_not_read() {
    let Some(gpu) = gpu() else { return };
    let shape = [2, 2, 30, 8];
    let [q, k, v] = [0, 1, 2].map(|stream| tensor(22, stream, shape));
    let means = Centroids::upload(&gpu, &centroids(22, 2, 3, 8)).unwrap();
    for (causal, shared) in [(false, false), (true, true), (true, false)] {
        let mut config = Config::new(3, 5).with_shared_qk(shared);
        config.causal = causal;
        let layer = Routing::new(&gpu, config).unwrap();
        let run = |q: &Array4<f64>, k: &Array4<f64>, v: &Array4<f64>, valid: Option<&Tensor>| {
            let [q, k, v] = [q, k, v].map(|x| upload(&gpu, x));
            layer.forward(Inputs::new(&q, &k, &v), valid, &means).unwrap()
        };
        let plain = run(&q, &k, &v, None);
        let routes = plain.routes.read().unwrap();
        let mut planted = v.clone();
        for (plane, lists) in routes.keys.iter().enumerate() {
            for token in (0..30).filter(|token| !lists.iter().any(|list| list.contains(token))) {
                planted.slice_mut(s![plane / 2, plane % 2, token, ..]).fill(f64::NAN);
            }
        }
        assert!(planted.iter().any(|x| x.is_nan()));
        assert_eq!(bits(&run(&q, &k, &planted, None).out), bits(&plain.out));

        // Of the tokens that are not padding, as if there were no others.
        let valid: Vec<u32> = (0..60).map(|at| u32::from(at % 30 < 24)).collect();
        let valid = Tensor::from_slice(&gpu, &valid, &[2, 30]).unwrap();
        let mut damaged = [q.clone(), k.clone(), v.clone()];
        for x in &mut damaged {
            x.slice_mut(s![.., .., 24.., ..]).fill(f64::NAN);
        }
        let padded = run(&damaged[0], &damaged[1], &damaged[2], Some(&valid)).out;
        let early = |x: &Array4<f64>| x.slice(s![.., .., ..24, ..]).to_owned();
        let short = run(&early(&q), &early(&k), &early(&v), None).out;
        close("padding", &early(&download(&padded)), &download(&short), 1e-5);
        assert!(download(&padded).slice(s![.., .., 24.., ..]).iter().all(|x| *x == 0.0));
    }
}

/// A cotangent reaches only what its token sees.
#[test]
fn cotangents_do_not_go_ahead() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 1, 30, 8];
    let [q, k, v, mut d] = [0, 1, 2, 3].map(|stream| tensor(27, stream, shape));
    let [q, k, v] = [q, k, v].map(|x| upload(&gpu, &x));
    let means = Centroids::upload(&gpu, &centroids(27, 1, 3, 8)).unwrap();
    d.slice_mut(s![0, 0, ..12, ..]).fill(f64::NAN);
    let d = upload(&gpu, &d);
    for shared in [true, false] {
        let layer = Routing::new(&gpu, Config::new(3, 14).with_shared_qk(shared)).unwrap();
        let inputs = Inputs::new(&q, &k, &v);
        let (_, saved) = layer.forward_saved(inputs, None, &means).unwrap();
        let grads = layer.backward(&saved, Cotangents { out: &d }).unwrap();
        for grad in [&grads.dq, &grads.dk, &grads.dv] {
            let late = grad.narrow(2, 12, 18).unwrap().to_vec::<f32>().unwrap();
            assert!(late.iter().all(|x| x.is_finite()), "shared {shared}");
        }
        assert!(grads.dv.to_vec::<f32>().unwrap().iter().any(|x| x.is_nan()));
    }
}

#[test]
fn a_token_that_is_not_a_number_stays_alone() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 1, 20, 8];
    let [mut q, v] = [0, 2].map(|stream| tensor(23, stream, shape));
    q.slice_mut(s![0, 0, 7, ..]).fill(f64::NAN);
    let layer = Routing::new(&gpu, Config::new(3, 5)).unwrap();
    let means = Centroids::upload(&gpu, &centroids(23, 1, 3, 8)).unwrap();
    let (q, v) = (upload(&gpu, &q), upload(&gpu, &v));
    let output = layer.forward(Inputs::new(&q, &q, &v), None, &means).unwrap();
    assert_eq!(output.routes.read().unwrap().counts[[0, 0, 7]], 0);
    assert!(output.out.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite()));
    // Padding is below even that: five tokens for five places.
    let valid: Vec<u32> = (0..20).map(|token| u32::from((5..10).contains(&token))).collect();
    let valid = Tensor::from_slice(&gpu, &valid, &[1, 20]).unwrap();
    let routes = layer.route(Inputs::new(&q, &q, &v), Some(&valid), &means).unwrap();
    for list in routes.read().unwrap().queries.iter().flatten() {
        assert_eq!(list, &[5, 6, 7, 8, 9]);
    }
}

#[test]
fn empty_calls() {
    let Some(gpu) = gpu() else { return };
    for shape in [[1, 2, 0, 8], [0, 2, 5, 8], [2, 0, 5, 8]] {
        for config in [Config::new(3, 4), Config::new(3, 4).bidirectional()] {
            let layer = Routing::new(&gpu, config).unwrap();
            let x = Tensor::zeros(&gpu, &shape, DType::F32).unwrap();
            let means = Tensor::zeros(&gpu, &[shape[1], 3, 8], DType::F32).unwrap();
            let means = Uninitialised::new(shape[1], 3, 8).with_normals(&means).unwrap();
            let inputs = Inputs::new(&x, &x, &x);
            let (output, saved) = layer.forward_saved(inputs, None, &means).unwrap();
            assert_eq!(output.out.shape(), shape);
            let grads = layer.backward(&saved, Cotangents { out: &x }).unwrap();
            assert_eq!(grads.dk.shape(), shape);
            let commitment = layer.commitment_loss(inputs, &output.routes, &means).unwrap();
            assert_eq!(commitment.loss.to_vec::<f32>().unwrap(), [0.0]);
            let next = layer.update(inputs, &output.routes, &means).unwrap();
            assert_eq!(next.means.shape(), means.means.shape());
            assert_eq!(output.routes.read().unwrap().counts.sum(), 0);
        }
    }
}

#[test]
fn half_types_are_storage() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 2, 24, 8];
    let [q, k, v, d] = [0, 1, 2, 3].map(|stream| upload(&gpu, &tensor(24, stream, shape)));
    let means = Centroids::upload(&gpu, &centroids(24, 2, 3, 8)).unwrap();
    let layer = Routing::new(&gpu, Config::new(3, 6).bidirectional()).unwrap();
    for dtype in [DType::F16, DType::BF16] {
        let [q, k, v, d] = [&q, &k, &v, &d].map(|x| ops::convert(x, dtype).unwrap());
        let inputs = Inputs::new(&q, &k, &v);
        let (output, saved) = layer.forward_saved(inputs, None, &means).unwrap();
        let grads = layer.backward(&saved, Cotangents { out: &d }).unwrap();
        let like = [&output.out, &grads.dq, &grads.dk, &grads.dv];
        for place in Place::all(&shape, dtype) {
            let frames = like.map(|like| Frame::new(&gpu, like.shape(), dtype, place));
            let [out, dq, dk, dv] = frames.each_ref().map(|frame| &frame.target);
            layer.forward_into(inputs, None, &means, out).unwrap();
            let targets = Targets { dq: Some(dq), dk: Some(dk), dv: Some(dv) };
            layer.backward_into(&saved, Cotangents { out: &d }, targets).unwrap();
            for (frame, want) in frames.iter().zip(like) {
                frame.check(&format!("{place:?} {dtype:?}"), want);
            }
        }
        // The same in f32 on the rounded numbers, rounded once.
        let [q, k, v, d] = [&q, &k, &v, &d].map(|x| ops::convert(x, DType::F32).unwrap());
        let (want, saved) = layer.forward_saved(Inputs::new(&q, &k, &v), None, &means).unwrap();
        let wide = layer.backward(&saved, Cotangents { out: &d }).unwrap();
        for (got, want) in [
            (&output.out, &want.out),
            (&grads.dq, &wide.dq),
            (&grads.dk, &wide.dk),
            (&grads.dv, &wide.dv),
        ] {
            assert_eq!(got.dtype(), dtype);
            let got = ops::convert(got, DType::F32).unwrap();
            let want = ops::convert(&ops::convert(want, dtype).unwrap(), DType::F32).unwrap();
            assert_eq!(bits(&got), bits(&want));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let x = |shape: [usize; 4]| Tensor::zeros(&gpu, &shape, DType::F32).unwrap();
    let (q, one, short) = (x([1, 4, 9, 4]), x([1, 3, 9, 4]), x([1, 4, 8, 4]));
    let means = Centroids::upload(&gpu, &centroids(0, 4, 3, 4)).unwrap();
    let more = Centroids::upload(&gpu, &centroids(0, 4, 5, 4)).unwrap();
    let layer = Routing::new(&gpu, Config::new(3, 4)).unwrap();
    let own = Routing::new(&gpu, Config::new(3, 4).with_shared_qk(false)).unwrap();
    let run = |k: &Tensor, valid: Option<&Tensor>, means: &Centroids| {
        layer.forward(Inputs::new(&q, k, k), valid, means).unwrap_err().to_string()
    };
    let half = ops::convert(&q, DType::F16).unwrap();
    let valid = Tensor::zeros(&gpu, &[1, 8], DType::U32).unwrap();
    let floats = Tensor::zeros(&gpu, &[1, 9], DType::F32).unwrap();
    let sinks = Tensor::zeros(&gpu, &[4], DType::F32).unwrap();
    let inputs = Inputs::new(&q, &q, &q);
    let routes = own.route(inputs, None, &means).unwrap();
    let (_, saved) = layer.forward_saved(inputs, None, &means).unwrap();
    let shorter = Inputs::new(&short, &short, &short);
    let integers = Tensor::zeros(&gpu, &[1, 4, 9, 4], DType::U32).unwrap();
    let into = |targets: Targets<'_>| {
        layer.backward_into(&saved, Cotangents { out: &q }, targets).unwrap_err().to_string()
    };
    for (message, part) in [
        (run(&one, None, &means), "`k` has shape"),
        (run(&short, None, &means), "`k` has shape"),
        (run(&half, None, &means), "`k`"),
        (run(&q, None, &more), "`centroids` has shape"),
        (run(&q, Some(&valid), &means), "`valid` has shape"),
        (run(&q, Some(&floats), &means), "`valid`"),
        (
            layer.forward(inputs.with_sinks(&sinks), None, &means).unwrap_err().to_string(),
            "`sinks`",
        ),
        (layer.attend(inputs, &routes).unwrap_err().to_string(), "`routes`"),
        (own.attend(shorter, &routes).unwrap_err().to_string(), "`q` has shape"),
        (own.update(shorter, &routes, &means).unwrap_err().to_string(), "`q` has shape"),
        (layer.backward(&saved, Cotangents { out: &short }).unwrap_err().to_string(), "`d_out`"),
        (layer.backward(&saved, Cotangents { out: &half }).unwrap_err().to_string(), "`d_out`"),
        (
            layer.forward_into(inputs, None, &means, &short).unwrap_err().to_string(),
            "`out` has shape",
        ),
        (into(Targets { dv: Some(&short), ..Targets::default() }), "`dv` has shape"),
        (into(Targets { dq: Some(&integers), ..Targets::default() }), "`dq`"),
        (Routing::new(&gpu, Config::new(0, 4)).unwrap_err().to_string(), "`clusters` is 0"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let wrong = Uninitialised::new(2, 3, 5).with_means(&means.means).unwrap_err();
    assert!(wrong.to_string().contains("`means`"), "{wrong}");
}

/// Centroids come back as they went, and first ones are normalised.
#[test]
fn centroids_travel() {
    let Some(gpu) = gpu() else { return };
    let host = centroids(25, 2, 3, 7);
    let there = Centroids::upload(&gpu, &host).unwrap().read().unwrap();
    assert_eq!(there.means, host.means.mapv(|x| f64::from(x as f32)));
    assert_eq!(there.counts, host.counts);
    let normals =
        Tensor::from_array(&gpu, &host.means.mapv(|x| x as f32).view().into_dyn()).unwrap();
    let first = Uninitialised::new(2, 3, 7).with_normals(&normals).unwrap().read().unwrap();
    let want = crate::support::normed(&host.means.clone().insert_axis(Axis(0)));
    close("first", &first.means.insert_axis(Axis(0)), &want, 1e-6);
}
