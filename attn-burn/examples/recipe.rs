//! An operation of one's own: a kernel with a forward and a backward pass, differentiable in burn.

use attn_burn::attn_wgpu::{self, Call, Constants, KernelSource};
use attn_burn::{Backward, Error, Gpu, Inputs, Operation, Result, Spec, apply, device};
use burn::tensor::Tensor;

/// `y = x^2`, and `dx = 2 x dy`.
const KERNEL: KernelSource = KernelSource {
    name: "square",
    text: "
        struct Params { count: u32 }
        @group(0) @binding(0) var<storage, read> x: array<f32>;
        @group(0) @binding(1) var<storage, read> dy: array<f32>;
        @group(0) @binding(2) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            if (id.x >= params.count) { return; }
            y[id.x] = x[id.x] * select(x[id.x], 2.0 * dy[id.x], BACKWARD == 1u);
        }
    ",
    imports: &[],
};

#[derive(Debug)]
struct Square;

impl Square {
    fn record(gpu: &Gpu, backward: bool, tensors: [&attn_wgpu::Tensor; 3]) -> Result<()> {
        let kernel = gpu.kernel(&KERNEL, Constants::new().int("BACKWARD", backward.into()))?;
        // Burn's tensors are views: the kernel reads rows without gaps from the start of a binding.
        let [x, dy, y] = tensors;
        let (x, dy) = (x.contiguous()?, dy.contiguous()?);
        let bindings = [&x, &dy, y].map(|tensor| tensor.binding().0);
        let count = y.len() as u32;
        let (groups, params) = (u64::from(count.div_ceil(64)), &count.to_ne_bytes());
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work: f64::from(count) })
    }
}

impl Operation for Square {
    type Saved = ();

    fn name(&self) -> &'static str {
        "square"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn forward(
        &self,
        gpu: &Gpu,
        inputs: &[attn_wgpu::Tensor],
        outputs: &[attn_wgpu::Tensor],
    ) -> Result<()> {
        Square::record(gpu, false, [&inputs[0], &inputs[0], &outputs[0]])
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        let Some(target) = &pass.gradients[0] else { return Ok(()) };
        Square::record(gpu, true, [&pass.inputs[0], &pass.cotangents[0], target])
    }
}

fn main() -> Result<()> {
    let device = match device() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        device => device?.autodiff(),
    };
    let x = Tensor::<1>::from_floats([1.0, -2.0, 3.0], &device).require_grad();
    let y = apply(Square, Inputs::new().float(x.clone()))?.float::<1>()?;
    let gradients = y.clone().sum().backward();
    let dx = x.grad(&gradients).map(|dx| dx.into_data());
    println!("{} {dx:?}", y.into_data());
    assert_eq!(dx, Some([2.0f32, -4.0, 6.0].into()));
    Ok(())
}
