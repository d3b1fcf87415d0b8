//! Calls that are refused, and what they say.

use attn_blockrank::{
    BlockRank, Config, DeviceSegments, Error, Inputs, Positives, QueryOffset, Segments, Tensor,
    reference,
};
use attn_core::{Mask, dense};
use attn_wgpu::DType;
use attn_wgpu::testing::gpu;
use ndarray::{Array2, Array3, Array4};

fn says<T, E: ToString>(result: Result<T, E>, part: &str) {
    let Err(error) = result else { panic!("accepted, where `{part}` was expected") };
    let error = error.to_string();
    assert!(error.contains(part), "{error:?} lacks {part:?}");
}

#[test]
fn wrong_parameters() {
    for (config, part) in [
        (Config::new().with_signal_rows(0), "`signal_rows` is 0"),
        (Config::new().with_heads(vec![]), "`heads` is []"),
        (Config::new().with_heads(vec![2, 2]), "`heads` is [2, 2]"),
        (Config::new().with_tau(0.0), "`tau` is 0"),
        (Config::new().with_tau(f64::NAN), "`tau` is NaN"),
        (Config::new().with_lambda(f64::INFINITY), "`lambda` is inf"),
        (Config::new().with_scale(f64::NAN), "`scale` is NaN"),
    ] {
        says(config.validate(), part);
        if let Some(gpu) = gpu() {
            says(BlockRank::new(&gpu, config), part);
        }
    }
    says(Config::new().with_heads(vec![1, 4]).heads_of(4), "expected below 4");
    assert_eq!(Config::new().heads_of(3).unwrap(), [0, 1, 2]);
}

#[test]
fn wrong_segments() {
    says(Segments::one(&[]), "at least one segment");
    says(Segments::one(&[1 << 28, 1 << 28]), "fewer than 2^29 tokens");
    says(Segments::one(&[usize::MAX, 5]), "fewer than 2^29 tokens");
    let mut valid = Array3::from_elem((1, 2, 4), true);
    valid[[0, 1, 0]] = false;
    assert!(Segments::padded(valid.view()).is_ok());
    valid[[0, 1, 2]] = false;
    says(Segments::padded(valid.view()), "padding on the left");
    says(Segments::padded(Array3::from_elem((1, 0, 4), true).view()), "at least one segment");
    let segments = Segments::one(&[3, 9, 2, 4]).unwrap();
    says(segments.positions(QueryOffset::At(11)), "at least 12, behind the longest document");
    says(segments.positions(QueryOffset::At(u32::MAX)), "positions below 2^31");
    says(segments.signal_rows(5), "at least 5 tokens in the query segment");
    says(segments.plan_part(1, 0..3, 2, 1), "prompts below 1");
    assert!(!segments.allows(7, 0, 0) && segments.documents(7).is_empty());
    assert_eq!((segments.batch(), segments.tokens(), segments.most_documents()), (1, 18, 2));
    let none = Segments::packed::<Vec<usize>>(&[]).unwrap();
    assert_eq!((none.batch(), none.tokens(), none.most_documents()), (0, 0, 0));
}

#[test]
fn wrong_calls_of_the_reference() {
    let segments = Segments::one(&[3, 4, 2, 4]).unwrap();
    let config = Config::new();
    let x = |heads, tokens, dim| Array4::<f64>::zeros((1, heads, tokens, dim));
    let (q, k) = (x(4, 13, 8), x(2, 12, 8));
    let inputs = reference::Inputs::new(q.view(), k.view(), k.view());
    says(reference::forward(inputs, &segments, &config), "[1, heads, 13, dim], as the segments");
    says(reference::signal_queries(k.view(), &segments, &config), "as the segments");
    let signal = x(4, 2, 8);
    let scores = |q: &Array4<f64>, k: &Array4<f64>| {
        reference::doc_scores(q.view(), k.view(), &segments, &config)
    };
    says(scores(&signal, &k), "as the segments");
    says(scores(&signal, &x(3, 13, 8)), "a multiple of 3");
    says(scores(&x(4, 0, 8), &x(2, 13, 8)), "at least 1");
    says(scores(&signal, &x(2, 13, 4)), "a multiple of 2, at least 1, 4");
    let d = Array2::zeros((1, 3));
    let k = x(2, 13, 8);
    let back =
        reference::doc_scores_backward(signal.view(), k.view(), &segments, &config, d.view());
    says(back, "`d_scores` has shape [1, 3], expected [1, 2]");
    let loss = |positives: &[Vec<usize>], documents| {
        reference::loss(Array2::zeros((1, documents)).view(), positives, &segments, &config)
    };
    says(loss(&[vec![0]], 3), "expected [1, 2]");
    says(loss(&[], 2), "lists of 1 prompts");
    says(loss(&[vec![]], 2), "at least one for each prompt");
    says(loss(&[vec![2]], 2), "numbers below 2");
}

#[test]
fn wrong_calls_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[3, 4, 2, 4]).unwrap();
    let method = BlockRank::new(&gpu, Config::new()).unwrap();
    let device = method.segments(&segments).unwrap();
    let x = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let (q, k) = (x(&[1, 4, 13, 8]), x(&[1, 2, 12, 8]));
    says(method.forward(Inputs::new(&q, &k, &k), &device), "as the plan");
    says(method.signal_queries(&k, &device), "as the segments");
    says(method.signal_queries(&x(&[1, 13, 8]), &device), "as the segments");
    let (signal, k) = (x(&[1, 4, 2, 8]), x(&[1, 2, 13, 8]));
    says(method.doc_scores(&signal, &x(&[1, 2, 12, 8]), &device), "as the segments");
    says(method.doc_scores(&signal, &x(&[2, 13, 8]), &device), "[batch, heads_kv, tokens, dim]");
    let whole = Tensor::zeros(&gpu, &[1, 4, 2, 8], DType::U32).unwrap();
    says(method.doc_scores(&whole, &k, &device), "f32, f16 or bf16");
    says(method.doc_scores_into(&signal, &k, &device, &x(&[1, 3])), "scores");
    let (_, saved) = method.doc_scores_saved(&signal, &k, &device).unwrap();
    says(method.doc_scores_backward(&saved, &x(&[1, 3])), "expected [1, 2]");
    says(saved.with_inputs(&k, &k), "`q` has shape");
    let few = BlockRank::new(&gpu, Config::new().with_heads(vec![4])).unwrap();
    says(few.doc_scores(&signal, &k, &device), "expected below 4");
    says(Positives::new(&gpu, &segments, &[vec![]]), "at least one for each prompt");
    let positives = Positives::new(&gpu, &segments, &[vec![1]]).unwrap();
    assert_eq!(positives.shape(), [1, 2]);
    says(method.loss(&x(&[1, 3]), &positives), "expected [1, 2]");
    says(method.loss_into(&x(&[1, 2]), &positives, &x(&[2])), "loss");
    let (scores, d) = (x(&[1, 2]), x(&[2]));
    let wrong = method.loss_backward_into(&scores, &positives, Some(&d), &x(&[1, 2]));
    says(wrong, "expected [1]");
    let full = dense::Config::new().with_mask(Mask::Full);
    says(BlockRank::with_attention(&gpu, Config::new(), full), "`mask` is full");
    let causal = dense::Config::new().with_mask(Mask::Causal);
    let both = BlockRank::with_attention(&gpu, Config::new().with_scale(0.5), causal);
    says(both, "`scale` is 0.5");
    let other = attn_wgpu::testing::open().unwrap();
    let foreign = DeviceSegments::new(&other, &segments).unwrap();
    says(method.doc_scores(&signal, &k, &foreign), "those of another Gpu");
}

/// Batches of nothing, prompts of nothing.
#[test]
fn empty_batches_and_prompts() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let method = BlockRank::new(&gpu, Config::new())?;
    for prompts in [&[][..], &[vec![0, 0]], &[vec![3, 2]], &[vec![0, 0, 2]]] {
        let segments = Segments::packed(prompts)?;
        let device = method.segments(&segments)?;
        let (batch, tokens) = (segments.batch(), segments.tokens());
        let x = |heads, tokens| Tensor::zeros(&gpu, &[batch, heads, tokens, 4], DType::F32);
        let (q, k) = (x(2, tokens)?, x(1, tokens)?);
        let output = method.forward(Inputs::new(&q, &k, &k), &device)?;
        assert!(output.out.to_vec::<f32>()?.iter().all(|x| *x == 0.0));
        let (scores, saved) = method.doc_scores_saved(&x(2, 2)?, &k, &device)?;
        assert!(scores.to_vec::<f32>()?.iter().all(|x| *x == 0.0));
        let grads = method.doc_scores_backward(&saved, &scores)?;
        assert!(grads.dk.to_vec::<f32>()?.iter().all(|x| *x == 0.0));
    }
    Ok(())
}
