//! The classifier: by differences, on the device, with running statistics.

use attn_dare::reference::{Head, HeadCotangents, Statistics, penalty};
use attn_dare::{HeadInputs, Parameters, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array1, Array2};

use crate::support::{head, matrix, near, up};

fn loss(head: &Head, x: &Array2<f64>, statistics: Option<&Statistics>, label: &Array1<u32>) -> f64 {
    head.forward(x.view(), statistics).unwrap().0.loss(label.view()).unwrap().0
}

/// Parameters in one row, to be moved one by one.
fn numbers(head: &mut Head) -> Vec<&mut f64> {
    let mut all: Vec<&mut f64> = head.gain.iter_mut().chain(head.bias.iter_mut()).collect();
    for layer in &mut head.layers {
        all.extend(layer.weight.iter_mut().chain(layer.bias.iter_mut()));
    }
    all.extend(head.slopes.iter_mut());
    all
}

#[test]
fn differences() {
    let label = Array1::from(vec![0, 1, 1, 0, 1]);
    let x = matrix(1, 1, 5, 6);
    let fixed = Statistics { mean: Array1::from_elem(6, 0.3), variance: Array1::from_elem(6, 0.8) };
    for (seed, widths) in [(1, &[6, 4, 3, 2][..]), (2, &[6, 5, 2]), (3, &[6, 2])] {
        for statistics in [None, Some(&fixed)] {
            let mut head = head(seed, widths);
            let (out, saved) = head.forward(x.view(), statistics).unwrap();
            let by_prob = out.loss(label.view()).unwrap().1;
            let cotangents = HeadCotangents { prob: by_prob.view() };
            let mut grads = head.backward(&saved, cotangents).unwrap();
            let got: Vec<f64> = numbers(&mut grads.head).into_iter().map(|x| *x).collect();
            for (i, &got) in got.iter().enumerate() {
                let mut at = |step: f64| {
                    *numbers(&mut head)[i] += step;
                    let loss = loss(&head, &x, statistics, &label);
                    *numbers(&mut head)[i] -= step;
                    loss
                };
                let want = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((got - want).abs() < 1e-7, "{seed} {i}: {got} for {want}");
            }
            for (at, &got) in grads.x.indexed_iter() {
                let moved = |step: f64| {
                    let mut x = x.clone();
                    x[at] += step;
                    loss(&head, &x, statistics, &label)
                };
                let want = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((got - want).abs() < 1e-7, "{seed} {at:?}: {got} for {want}");
            }
        }
    }
}

/// Odd widths and numbers of rows, training and inference, either cotangent.
#[test]
fn smoke_heads_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let device = attn_dare::Head::new(&gpu);
    let one = Tensor::from_slice(&gpu, &[1f32], &[1]).unwrap();
    for (seed, rows, widths) in
        [(1, 33, &[18, 12, 7, 2][..]), (2, 5, &[7, 10, 2]), (3, 130, &[48, 20, 2]), (4, 2, &[3, 2])]
    {
        let own = head(seed, widths);
        let x = matrix(seed, 2, rows, widths[0]);
        let label: Array1<u32> = (0..rows).map(|b| (b % 3 == 1).into()).collect();
        let d_prob = matrix(seed, 3, rows, 2);
        let fixed = Statistics {
            mean: matrix(seed, 4, 1, widths[0]).row(0).to_owned(),
            variance: matrix(seed, 5, 1, widths[0]).row(0).mapv(|x| 0.5 + x * x),
        };
        let parameters = Parameters::upload(&gpu, &own).unwrap();
        let read = parameters.read().unwrap();
        assert!((penalty(&[&read]) - penalty(&[&own])).abs() < 1e-4);
        let on = up(&gpu, x.view());
        let on_label = Tensor::from_array(&gpu, &label.view().into_dyn()).unwrap();
        let on_fixed = attn_dare::Statistics::upload(&gpu, &fixed).unwrap();
        for statistics in [None, Some(&fixed)] {
            let mut inputs = HeadInputs::new(&on, &parameters).with_label(&on_label);
            if statistics.is_some() {
                inputs = inputs.with_statistics(&on_fixed);
            }
            let (want, want_saved) = own.forward(x.view(), statistics).unwrap();
            let (got, saved) = device.forward_saved(inputs).unwrap();
            let what = format!("{rows} rows, {widths:?}, fixed {}", statistics.is_some());
            near(&what, &got.prob, want.prob.view(), 1e-5);
            near(&what, &got.statistics.mean, want.statistics.mean.view(), 1e-5);
            near(&what, &got.statistics.variance, want.statistics.variance.view(), 1e-5);
            let (loss, by_prob) = want.loss(label.view()).unwrap();
            near(&what, got.loss.as_ref().unwrap(), Array1::from_elem(1, loss).view(), 1e-5);
            let both = &by_prob + &d_prob;
            let want = own.backward(&want_saved, HeadCotangents { prob: both.view() }).unwrap();
            let on_prob = up(&gpu, d_prob.view());
            let cotangents = attn_dare::HeadCotangents { prob: Some(&on_prob), loss: Some(&one) };
            let grads = device.backward(&saved, cotangents).unwrap();
            near(&what, &grads.x, want.x.view(), 1e-4);
            near(&what, &grads.gain, want.head.gain.view(), 1e-4);
            near(&what, &grads.bias, want.head.bias.view(), 1e-4);
            for (got, want) in grads.layers.iter().zip(&want.head.layers) {
                near(&what, &got.weight, want.weight.view(), 1e-4);
                near(&what, &got.bias, want.bias.view(), 1e-4);
            }
            for (got, want) in grads.slopes.iter().zip(&want.head.slopes) {
                near(&what, got, Array1::from_elem(1, *want).view(), 1e-4);
            }
            let saved = saved.with_inputs(&parameters, Some(&on_label));
            let again = device.backward(&saved, cotangents).unwrap();
            assert_eq!(again.x.to_vec::<f32>().unwrap(), grads.x.to_vec::<f32>().unwrap());
        }
    }
}

/// Running statistics go towards those of batches, variances unbiased.
#[test]
fn running_statistics() {
    let mut own = Statistics { mean: Array1::zeros(2), variance: Array1::ones(2) };
    let batch = Statistics { mean: Array1::from_elem(2, 1.0), variance: Array1::from_elem(2, 3.0) };
    own.update(&batch, 4, 0.1);
    assert!((own.mean[0] - 0.1).abs() < 1e-15 && (own.variance[1] - 1.3).abs() < 1e-15);
    own.update(&batch, 1, 1.0);
    assert_eq!(own, batch);
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let good = head(1, &[6, 4, 3, 2]);
    let x = matrix(1, 1, 5, 6);
    let run = |change: &dyn Fn(&mut Head)| {
        let mut head = good.clone();
        change(&mut head);
        head.forward(x.view(), None).unwrap_err().to_string()
    };
    let (out, saved) = good.forward(x.view(), None).unwrap();
    let bad = Array2::zeros((5, 3));
    for (message, part) in [
        (run(&|head| head.gain = Array1::zeros(5)), "`gain` has shape [5]"),
        (run(&|head| head.bias = Array1::zeros(7)), "`bias` has shape [7]"),
        (run(&|head| head.layers.clear()), "`slopes`"),
        (run(&|head| head.slopes.truncate(1)), "`slopes` is 1"),
        (run(&|head| head.layers[0].weight = Array2::zeros((4, 5))), "`weight` has shape [4, 5]"),
        (run(&|head| head.layers[1].bias = Array1::zeros(2)), "`bias` has shape [2]"),
        (run(&|head| head.layers[2].weight = Array2::zeros((3, 3))), "`weight` has shape [3, 3]"),
        (out.loss(Array1::zeros(4).view()).unwrap_err().to_string(), "`label` has shape [4]"),
        (out.loss(Array1::from_elem(5, 2).view()).unwrap_err().to_string(), "`label` holds 2"),
        (
            good.backward(&saved, HeadCotangents { prob: bad.view() }).unwrap_err().to_string(),
            "`cotangents.prob` has shape [5, 3]",
        ),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }

    let Some(gpu) = gpu() else { return };
    let device = attn_dare::Head::new(&gpu);
    let parameters = Parameters::upload(&gpu, &good).unwrap();
    let on = up(&gpu, x.view());
    let run = |inputs: HeadInputs<'_>| device.forward(inputs).unwrap_err().to_string();
    let (flat, one) = (up(&gpu, x.row(0)), Tensor::from_slice(&gpu, &[1f32], &[1]).unwrap());
    let without = Parameters { slopes: Vec::new(), ..parameters.clone() };
    let narrow = Parameters { gain: flat.narrow(0, 0, 5).unwrap(), ..parameters.clone() };
    let (_, saved) = device.forward_saved(HeadInputs::new(&on, &parameters)).unwrap();
    let back = |cotangents| device.backward(&saved, cotangents).unwrap_err().to_string();
    for (message, part) in [
        (run(HeadInputs::new(&flat, &parameters)), "`x` has shape [6]"),
        (run(HeadInputs::new(&on, &without)), "`slopes` is 0"),
        (run(HeadInputs::new(&on, &narrow)), "`gain` has shape [5]"),
        (run(HeadInputs::new(&on, &parameters).with_label(&one)), "`label` has element type f32"),
        (back(attn_dare::HeadCotangents::default()), "`cotangents` is none"),
        (back(attn_dare::HeadCotangents::of_loss(&one)), "`cotangents.loss` is one"),
        (back(attn_dare::HeadCotangents::of_prob(&one)), "`cotangents.prob` has shape [1]"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}
