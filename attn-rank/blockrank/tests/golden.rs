//! Vectors from the authors' code. `ATTN_GOLDEN_DIR` adds a folder of more.

use std::path::PathBuf;

use attn_blockrank::reference::{self, Cotangents, Inputs};
use attn_blockrank::{BlockRank, Config, Positives, QueryOffset, ScoreTargets, Segments, Tensor};
use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_wgpu::testing::gpu;
use ndarray::{Array2, Array4, Axis, Ix2, Ix3, Ix4, s};

/// Tolerances of the specification in f32 (absolute): positions and rankings exact.
const OUT: f64 = 2e-5;
const SCORES: f64 = 1e-5;
/// Absolute, and again relative: tau amplifies.
const LOSS: f64 = 1e-4;
const GRADIENTS: f64 = 1e-4;

#[test]
fn blockrank() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "blockrank").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let packed = file.has(&["q", "k", "v", "segment_lengths", "positions", "out", "lse"]);
        let padded = file.has(&["q", "k", "v", "valid", "out", "doc_scores"]);
        assert!(packed || padded, "{}: of no known kind", file.path().display());
        println!("{}", file.path().display());
        let case = Case::of(&file, padded).unwrap();
        case.on_the_host().unwrap();
        case.on_the_device();
    }
}

/// A file with what follows from it.
struct Case<'a> {
    file: &'a GoldenFile,
    config: Config,
    segments: Segments,
    /// Queries, keys, values.
    qkv: [Array4<f64>; 3],
    positives: Vec<Vec<usize>>,
}

fn four(file: &GoldenFile, name: &str) -> Result<Array4<f64>> {
    Ok(file.f64(name)?.into_dimensionality::<Ix4>().unwrap())
}

fn close(what: &str, got: impl IntoIterator<Item = f64>, want: &[f64], bound: f64) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    let off = |(got, want): (&f64, &f64)| if got == want { 0.0 } else { (got - want).abs() };
    let worst = got.iter().zip(want).map(off).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
    println!("  {what}: {worst:.1e}");
}

impl<'a> Case<'a> {
    fn of(file: &'a GoldenFile, padded: bool) -> Result<Case<'a>> {
        let number = |key: &str| file.number(key).unwrap();
        let config = Config::new()
            .with_scale(number("scale"))
            .with_tau(number("tau"))
            .with_lambda(number("lambda_aux"))
            .with_query_offset(QueryOffset::At(number("query_offset") as u32));
        let segments = if padded {
            let valid = file.i32("valid")?.into_dimensionality::<Ix3>().unwrap();
            Segments::padded(valid.mapv(|real| real != 0).view())?
        } else {
            let lengths: Vec<usize> =
                file.i32("segment_lengths")?.iter().map(|&len| len as usize).collect();
            Segments::one(&lengths)?
        };
        let positives = match file.contains("positives") {
            false => Vec::new(),
            true => {
                let all = file.i32("positives")?.into_dimensionality::<Ix2>().unwrap();
                let own = |row: ndarray::ArrayView1<'_, i32>| {
                    row.iter().filter(|&&k| k >= 0).map(|&k| k as usize).collect()
                };
                all.outer_iter().map(own).collect()
            }
        };
        let qkv = [four(file, "q")?, four(file, "k")?, four(file, "v")?];
        Ok(Case { file, config, segments, qkv, positives })
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.file.f64(name).unwrap().iter().copied().collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        self.file.i32(name).unwrap().iter().map(|&number| number as usize).collect()
    }

    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v] = &self.qkv;
        Inputs::new(q.view(), k.view(), v.view())
    }

    fn loss_bound(&self) -> f64 {
        LOSS * (1.0 + self.numbers("aux_loss")[0].abs())
    }

    fn check_ranking(&self, scores: &Array2<f64>) {
        if !self.file.contains("ranking") {
            return;
        }
        let width = scores.ncols();
        for (row, want) in scores.outer_iter().zip(self.integers("ranking").chunks(width)) {
            assert_eq!(reference::rank(row), want, "ranking");
        }
    }

    fn on_the_host(&self) -> Result<()> {
        let Case { file, config, segments, qkv: [q, k, _], .. } = self;
        let output = reference::forward(self.inputs(), segments, config)?;
        close("out", output.out.iter().copied(), &self.numbers("out"), OUT);
        if file.contains("lse") {
            let want: Vec<f64> = file.lse("lse")?.iter().copied().collect();
            close("lse", output.lse.iter().copied(), &want, OUT);
        }
        if file.contains("positions") {
            let positions = segments.positions(config.query_offset)?;
            let got: Vec<usize> = positions.iter().map(|&at| at as usize).collect();
            assert_eq!(got, self.integers("positions"), "positions");
        }
        if !file.contains("doc_scores") {
            return Ok(());
        }
        // Prompts of training: the answer stands behind the signal.
        let rows = self.integers("signal_rows");
        let signal = q.select(Axis(2), &rows);
        let found = reference::doc_scores(signal.view(), k.view(), segments, config)?;
        close("doc_scores", found.scores.iter().copied(), &self.numbers("doc_scores"), SCORES);
        self.check_ranking(&found.scores);
        let loss = reference::loss(found.scores.view(), &self.positives, segments, config)?;
        close("aux_loss", [loss.loss], &self.numbers("aux_loss"), self.loss_bound());
        if !file.contains("d_out") {
            return Ok(());
        }
        let d_out = four(file, "d_out")?;
        let cotangents = Cotangents { out: d_out.view(), lse: None };
        let grads = reference::backward(self.inputs(), segments, config, cotangents)?;
        let aux = reference::doc_scores_backward(
            signal.view(),
            k.view(),
            segments,
            config,
            loss.d_scores.view(),
        )?;
        // From signal rows to all rows.
        let mut dq_aux = Array4::zeros(q.dim());
        for (i, &row) in rows.iter().enumerate() {
            dq_aux.slice_mut(s![.., .., row, ..]).assign(&aux.dq.slice(s![.., .., i, ..]));
        }
        close("dq_aux", dq_aux.iter().copied(), &self.numbers("dq_aux"), GRADIENTS);
        close("dk_aux", aux.dk.iter().copied(), &self.numbers("dk_aux"), GRADIENTS);
        let dq = &grads.dq + &(config.lambda * &dq_aux);
        let dk = &grads.dk + &(config.lambda * &aux.dk);
        close("dq", dq.iter().copied(), &self.numbers("dq"), GRADIENTS);
        close("dk", dk.iter().copied(), &self.numbers("dk"), GRADIENTS);
        close("dv", grads.dv.iter().copied(), &self.numbers("dv"), GRADIENTS);
        Ok(())
    }

    fn on_the_device(&self) {
        let Some(gpu) = gpu() else { return };
        let Case { file, config, segments, .. } = self;
        let upload =
            |name: &str| Tensor::from_array(&gpu, &file.f32(name).unwrap().view()).unwrap();
        let floats = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from);
        let (q, k, v) = (upload("q"), upload("k"), upload("v"));
        let method = BlockRank::new(&gpu, config.clone()).unwrap();
        let device = method.segments(segments).unwrap();
        let inputs = attn_blockrank::Inputs::new(&q, &k, &v);
        let (output, saved) = method.forward_saved(inputs, &device).unwrap();
        close("out on the device", floats(&output.out), &self.numbers("out"), OUT);
        if file.contains("lse") {
            let want: Vec<f64> = file.lse("lse").unwrap().iter().copied().collect();
            close("lse on the device", floats(&output.lse), &want, OUT);
        }
        if !file.contains("doc_scores") {
            return;
        }
        let rows = self.integers("signal_rows");
        assert_eq!(rows[1], rows[0] + 1);
        let signal = q.narrow(2, rows[0], 2).unwrap();
        let (scores, saved_scores) = method.doc_scores_saved(&signal, &k, &device).unwrap();
        let want = self.numbers("doc_scores");
        close("doc_scores on the device", floats(&scores), &want, SCORES);
        let shape = [segments.batch(), segments.most_documents()];
        self.check_ranking(&Array2::from_shape_vec(shape, floats(&scores).collect()).unwrap());
        let positives = Positives::new(&gpu, segments, &self.positives).unwrap();
        let loss = method.loss(&scores, &positives).unwrap();
        let want = self.numbers("aux_loss");
        close("aux_loss on the device", floats(&loss.loss), &want, self.loss_bound());
        if !file.contains("d_out") {
            return;
        }
        let (dq, dk) = (upload("q"), upload("k"));
        let targets = ScoreTargets { dq: None, dk: Some(&dk) };
        method.doc_scores_backward_into(&saved_scores, &loss.d_scores, targets).unwrap();
        let dk_aux: Vec<f64> = floats(&dk).collect();
        close("dk_aux on the device", dk_aux.clone(), &self.numbers("dk_aux"), GRADIENTS);
        let aux = method.doc_scores_backward(&saved_scores, &loss.d_scores).unwrap();
        let zeros = Tensor::zeros(&gpu, dq.shape(), dq.dtype()).unwrap();
        let place = zeros.narrow(2, rows[0], 2).unwrap();
        attn_wgpu::ops::copy(&aux.dq, &place).unwrap();
        let dq_aux: Vec<f64> = floats(&zeros).collect();
        close("dq_aux on the device", dq_aux.clone(), &self.numbers("dq_aux"), GRADIENTS);
        let d_out = upload("d_out");
        let cotangents = attn_blockrank::Cotangents { out: &d_out, lse: None };
        let grads = method.backward(&saved, cotangents).unwrap();
        let sum = |own: &Tensor, aux: &[f64]| -> Vec<f64> {
            floats(own).zip(aux).map(|(own, aux)| own + config.lambda * aux).collect()
        };
        let (dq, dk) = (sum(&grads.dq, &dq_aux), sum(&grads.dk, &dk_aux));
        close("dq on the device", dq, &self.numbers("dq"), GRADIENTS);
        close("dk on the device", dk, &self.numbers("dk"), GRADIENTS);
        close("dv on the device", floats(&grads.dv), &self.numbers("dv"), GRADIENTS);
    }
}
