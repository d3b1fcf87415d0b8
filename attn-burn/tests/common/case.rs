//! Queries, keys and values with a cotangent of the output, and their gradients by several ways.

use attn_burn::Gpu;
use attn_burn::attn_wgpu::Tensor as Ours;
use burn::tensor::{Device, Tensor};

use super::{ours, read, tensor};

pub type Three = [Tensor<4>; 3];

/// Shapes of queries, keys and values.
pub type Shapes = [[usize; 4]; 3];

pub struct Case {
    pub shapes: Shapes,
    pub data: [Vec<f32>; 3],
    /// Shape of the output.
    pub out: [usize; 4],
    /// Cotangent of the output.
    pub weights: Vec<f32>,
}

impl Case {
    /// Of an attention whose output has a row for each query.
    pub fn new(shapes: Shapes) -> Case {
        let [[batch, heads, queries, _], _, [.., dim_v]] = shapes;
        Case::with_out(shapes, [batch, heads, queries, dim_v])
    }

    pub fn with_out(shapes: Shapes, out: [usize; 4]) -> Case {
        let data = [0, 1, 2].map(|i| super::normal(shapes[i].iter().product(), 10 + i as u64));
        Case { shapes, data, out, weights: super::normal(out.iter().product(), 20) }
    }

    pub fn inputs(&self, device: &Device) -> Three {
        [0, 1, 2].map(|i| tensor(&self.data[i], self.shapes[i], device).require_grad())
    }

    /// Output and gradients by burn; a gradient that nobody has is empty.
    pub fn run(&self, device: &Device, f: impl Fn(&Three) -> Tensor<4>) -> [Vec<f32>; 4] {
        let inputs = self.inputs(device);
        let out = f(&inputs);
        let weights = tensor(&self.weights, self.out, device);
        let grads = (out.clone() * weights).sum().backward();
        let [q, k, v] = inputs.map(|x| x.grad(&grads).map(read).unwrap_or_default());
        [read(out), q, k, v]
    }

    /// A few of the derivatives `got` by central differences of `f`.
    pub fn differences(
        &self,
        device: &Device,
        got: &[Vec<f32>; 4],
        f: impl Fn(&Three) -> Tensor<4>,
    ) {
        const STEP: f32 = 1e-2;
        let loss = |data: &[Vec<f32>; 3]| -> f64 {
            let out = read(f(&[0, 1, 2].map(|i| tensor(&data[i], self.shapes[i], device))));
            out.iter().zip(&self.weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        for input in 0..3 {
            let most = got[input + 1].iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let length = self.data[input].len();
            for at in [0, length / 2 + 1, length - 1] {
                let moved = |by: f32| {
                    let mut data = self.data.clone();
                    data[input][at] += by;
                    loss(&data)
                };
                let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                // The third derivative leaves some 1e-4, rounding of f32 some 1e-4 more.
                let error = (slope - f64::from(got[input + 1][at])).abs();
                assert!(error < 2e-3 * f64::from(most), "input {input}, {at}: {error:e}");
            }
        }
    }

    /// Inputs and cotangent as tensors of `attn-wgpu`.
    pub fn ours(&self, gpu: &Gpu) -> ([Ours; 3], Ours) {
        let inputs = [0, 1, 2].map(|i| ours(gpu, &self.data[i], &self.shapes[i]));
        (inputs, ours(gpu, &self.weights, &self.out))
    }

    /// What comes before attention in a model: views of several kinds, inputs that need no gradient,
    /// activations that are computed again for the backward pass; and behind it a loss whose gradient is one
    /// expanded number. All have the same bits.
    pub fn views(&self, device: &Device, f: impl Fn(&Three) -> Tensor<4>) {
        let all = self.run(device, &f);
        let turned = |x: &Tensor<4>| (x.clone().swap_dims(2, 3) * 1.0).swap_dims(2, 3);
        let moved = |x: &Tensor<4>| (x.clone().swap_dims(1, 2) * 1.0).swap_dims(1, 2);
        let checkpoints = device.clone().gradient_checkpointing();
        assert!(all == self.run(device, |x| f(&x.each_ref().map(turned))));
        assert!(all == self.run(device, |x| f(&x.each_ref().map(moved))));
        assert!(all == self.run(&checkpoints, &f));
        assert!(all == self.run(&checkpoints, |x| f(&x.each_ref().map(turned))));
        let some = self.run(device, |[q, k, v]| f(&[q.clone(), k.clone().detach(), v.clone()]));
        assert!(some[2].is_empty() && all[0] == some[0] && all[1] == some[1] && all[3] == some[3]);

        let ones = Case {
            weights: vec![1.0; self.weights.len()],
            ..Case::with_out(self.shapes, self.out)
        };
        let want = ones.run(device, &f);
        let inputs = self.inputs(device);
        let grads = f(&inputs).sum().backward();
        let got = inputs.map(|x| read(x.grad(&grads).unwrap()));
        assert!(got == want[1..]);
    }
}

pub fn words(tensors: [&Ours; 4]) -> [Vec<f32>; 4] {
    tensors.map(|x| x.to_vec().unwrap())
}
