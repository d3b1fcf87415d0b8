//! Data, and the device against the reference.

use attn_core::testing::{Values, fill};
use attn_routing::reference::{self, Inputs, Uninitialised};
use attn_routing::{Centroids, Config, Cotangents, Gpu, Routing, Targets, Tensor};
use attn_wgpu::DType;
use attn_wgpu::testing::{Frame, Place};
use ndarray::{Array2, Array3, Array4, Axis};

/// Tolerances of the golden files, for values of about 1.
pub const OUT: f64 = 1e-5;
pub const GRAD: f64 = 2e-5;

pub fn numbers(seed: u64, stream: u64, count: usize) -> Vec<f64> {
    fill(seed, stream, Values::Normal, count).into_iter().map(f64::from).collect()
}

pub fn tensor(seed: u64, stream: u64, shape: [usize; 4]) -> Array4<f64> {
    Array4::from_shape_vec(shape, numbers(seed, stream, shape.iter().product())).unwrap()
}

pub fn centroids(seed: u64, heads: usize, clusters: usize, dim: usize) -> reference::Centroids {
    let means = numbers(seed, 9, heads * clusters * dim);
    let means = Array3::from_shape_vec((heads, clusters, dim), means).unwrap();
    Uninitialised::new(heads, clusters, dim).with_means(means.view()).unwrap()
}

pub fn normed(x: &Array4<f64>) -> Array4<f64> {
    let mut x = x.clone();
    for mut row in x.rows_mut() {
        let mean = row.mean().unwrap();
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        row.mapv_inplace(|x| (x - mean) / (variance + 1e-6).sqrt());
    }
    x
}

pub fn close(what: &str, got: &Array4<f64>, want: &Array4<f64>, bound: f64) {
    assert_eq!(got.dim(), want.dim(), "{what}");
    // A NaN is no distance, and must not pass for 0.
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    let worst =
        worst.fold(0.0, |worst: f64, x| if x.is_nan() { f64::INFINITY } else { worst.max(x) });
    assert!(worst <= bound, "{what}: {worst:e}");
}

/// As [`close`], relative to the largest element where that is above 1.
pub fn close_to(what: &str, got: &Tensor, want: &Array4<f64>, bound: f64) {
    let largest = want.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    close(what, &download(got), want, bound * largest);
}

pub fn upload(gpu: &Gpu, x: &Array4<f64>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

/// The same numbers `[batch, tokens, heads, dim]` in memory, behind some others.
pub fn upload_strided(gpu: &Gpu, x: &Array4<f64>) -> Tensor {
    let (batch, heads, tokens, dim) = x.dim();
    let mut wide = Array4::from_elem((batch, tokens + 1, heads, dim + 3), f32::NAN);
    let inside = x.mapv(|x| x as f32).permuted_axes([0, 2, 1, 3]);
    wide.slice_mut(ndarray::s![.., 1.., .., 1..=dim]).assign(&inside);
    let all = Tensor::from_array(gpu, &wide.view().into_dyn()).unwrap();
    let view = all.narrow(1, 1, tokens).unwrap().narrow(3, 1, dim).unwrap();
    view.permute(&[0, 2, 1, 3]).unwrap()
}

pub fn download(x: &Tensor) -> Array4<f64> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

/// A call, and how it lies in memory.
#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub tokens: usize,
    pub dims: [usize; 2],
    pub config: Config,
    /// Padding at the end of the first entry; one less in each entry behind it.
    pub padding: Option<usize>,
    pub strided: bool,
    pub seed: u64,
}

impl Case {
    pub fn new(seed: u64, tokens: usize, dims: [usize; 2], config: Config) -> Case {
        let (batch, heads, heads_kv) = (1, 2, 2);
        Case { batch, heads, heads_kv, tokens, dims, config, padding: None, strided: false, seed }
    }

    fn repeated(&self, x: &Array4<f64>) -> Array4<f64> {
        let group = self.heads / self.heads_kv;
        let heads: Vec<usize> = (0..self.heads).map(|head| head / group).collect();
        x.select(Axis(1), &heads)
    }

    fn summed(&self, x: &Array4<f64>) -> Array4<f64> {
        let group = self.heads / self.heads_kv;
        let mut sum = Array4::zeros((self.batch, self.heads_kv, x.dim().2, x.dim().3));
        for head in 0..self.heads {
            let mut target = sum.index_axis_mut(Axis(1), head / group);
            target += &x.index_axis(Axis(1), head);
        }
        sum
    }

    /// Queries, keys, values and a cotangent.
    pub fn data(&self) -> [Array4<f64>; 4] {
        let [dim, dim_v] = self.dims;
        let shapes =
            [(self.heads, dim), (self.heads_kv, dim), (self.heads_kv, dim_v), (self.heads, dim_v)];
        [0, 1, 2, 3].map(|stream: usize| {
            let (heads, dim) = shapes[stream];
            tensor(self.seed, stream as u64, [self.batch, heads, self.tokens, dim])
        })
    }

    fn valid(&self) -> Option<Array2<bool>> {
        let padding = self.padding?;
        let is_valid = |(entry, token)| token + padding.saturating_sub(entry) < self.tokens;
        Some(Array2::from_shape_fn((self.batch, self.tokens), is_valid))
    }

    pub fn valid_on(&self, gpu: &Gpu) -> Option<Tensor> {
        let valid = self.valid()?.mapv(u32::from);
        Some(Tensor::from_array(gpu, &valid.view().into_dyn()).unwrap())
    }

    /// Everything that a layer computes; whether its choices were clear.
    pub fn check(&self, gpu: &Gpu) -> bool {
        let [q, k, v, d_out] = self.data();
        let place = if self.strided { upload_strided } else { upload };
        let [on_q, on_k, on_v, on_d] = [&q, &k, &v, &d_out].map(|x| place(gpu, x));
        let inputs = attn_routing::Inputs::new(&on_q, &on_k, &on_v);
        let means = centroids(self.seed, self.heads, self.config.clusters, self.dims[0]);
        let on_means = Centroids::upload(gpu, &means).unwrap();
        let layer = Routing::new(gpu, self.config.clone()).unwrap();
        let valid = self.valid_on(gpu);
        let (output, saved) = layer.forward_saved(inputs, valid.as_ref(), &on_means).unwrap();
        let routes = output.routes.read().unwrap();

        let grads = layer.backward(&saved, Cotangents { out: &on_d }).unwrap();
        let like = [&output.out, &grads.dq, &grads.dk, &grads.dv];
        let places = Place::all(&[1, 1, 1, 4], DType::F32);
        let place = places[self.seed as usize % places.len()];
        let frames = like.map(|like| Frame::new(gpu, like.shape(), DType::F32, place));
        let [out, dq, dk, dv] = frames.each_ref().map(|frame| &frame.target);
        let (_, again) = layer.forward_saved_into(inputs, valid.as_ref(), &on_means, out).unwrap();
        let targets = Targets { dq: Some(dq), dk: Some(dk), dv: Some(dv) };
        layer.backward_into(&again, Cotangents { out: &on_d }, targets).unwrap();
        for (frame, want) in frames.iter().zip(like) {
            frame.check(&format!("{place:?} {self:?}"), want);
        }

        let (k, v) = (self.repeated(&k), self.repeated(&v));
        let wide = Inputs::new(q.view(), k.view(), v.view());
        let valid = self.valid();
        let valid = valid.as_ref().map(|valid| valid.view());
        let want = reference::route(wide, valid, &means, &self.config).unwrap();
        let is_clear = self.is_clear(&q, &k, &means);
        if is_clear {
            assert_eq!(routes, want, "{self:?}");
        }
        // From here on with the device's own routes, so that a close choice hides nothing.
        let want = reference::attend(wide, &routes, &self.config).unwrap();
        close_to("out", &output.out, &want, OUT);
        let want = reference::backward(wide, &routes, &self.config, d_out.view()).unwrap();
        close_to("dq", &grads.dq, &want.dq, GRAD);
        close_to("dk", &grads.dk, &self.summed(&want.dk), GRAD);
        close_to("dv", &grads.dv, &self.summed(&want.dv), GRAD);
        let got = layer.commitment_loss(inputs, &output.routes, &on_means).unwrap();
        let (loss, [dq, dk]) =
            reference::commitment_loss(wide, &routes, &means, &self.config).unwrap();
        let off = f64::from(got.loss.to_vec::<f32>().unwrap()[0]) - loss;
        assert!(off.abs() <= 1e-5 * loss, "loss: {off:e} of {loss:e}");
        let each = self.config.commitment / (q.len().max(1)) as f64;
        close("dq of the loss", &download(&got.dq), &dq, 1e-3 * each);
        close("dk of the loss", &download(&got.dk), &self.summed(&dk), 1e-3 * each);
        let next = layer.update(inputs, &output.routes, &on_means).unwrap().read().unwrap();
        let want = reference::update(wide, &routes, &means, &self.config).unwrap();
        let off = |a: f64, b: f64| (a - b).abs() <= OUT * b.abs().max(1.0);
        assert!(next.means.iter().zip(&want.means).all(|(a, b)| off(*a, *b)), "means");
        assert!(next.sums.iter().zip(&want.sums).all(|(a, b)| off(*a, *b)), "sums");
        assert!(next.counts.iter().zip(&want.counts).all(|(a, b)| off(*a, *b)), "counts");
        is_clear
    }

    /// Whether no choice hangs on less than rounding may change.
    fn is_clear(&self, q: &Array4<f64>, k: &Array4<f64>, means: &reference::Centroids) -> bool {
        let valid = self.valid();
        let mut clear = true;
        for x in [normed(q), normed(k)] {
            for (plane, rows) in x
                .outer_iter()
                .flat_map(|x| x.outer_iter().map(|x| x.to_owned()).collect::<Vec<_>>())
                .enumerate()
            {
                let (entry, head) = (plane / self.heads, plane % self.heads);
                let scores = rows.dot(&means.means.index_axis(Axis(0), head).t());
                let sorted = |scores: Vec<f64>| {
                    let mut scores = scores;
                    scores.sort_by(|a, b| b.total_cmp(a));
                    scores
                };
                for column in scores.columns() {
                    let is_valid =
                        |token: &usize| valid.as_ref().is_none_or(|valid| valid[[entry, *token]]);
                    let scores = (0..column.len()).filter(is_valid).map(|token| column[token]);
                    let scores = sorted(scores.collect());
                    if let Some(next) = scores.get(self.config.window) {
                        clear &= scores[self.config.window - 1] - next > 1e-5;
                    }
                }
                for row in scores.rows() {
                    let scores = sorted(row.to_vec());
                    clear &= scores.len() < 2 || scores[0] - scores[1] > 1e-5;
                }
            }
        }
        clear
    }
}
