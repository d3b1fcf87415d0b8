//! Operations on burn's tensors: what burn's backends are given to run, and the way through autodiff.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_wgpu::Result;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward as AutodiffBackward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, DispatchTensor, backend_extension,
};
use burn::tensor::{DType as BurnDType, Device, Int, Tensor};
use burn_cubecl::CubeBackend;

use crate::cross;
use crate::device;
use crate::operands::Operands;
use crate::operation::{Erased, Layout, Operation, Packed, Spec, Step, fail, places};

#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;

/// The one method that burn's backends get: any pass of any operation.
#[backend_extension(Cube, Autodiff, Fusion: cfg(feature = "fusion"))]
pub(crate) trait Run: Backend {
    #[fusion(meta = described)]
    fn run(step: Step, #[extension_type] given: Operands<Self>) -> Operands<Self>;
}

impl Run for CubeBackend {
    fn run(step: Step, given: Operands<Self>) -> Operands<Self> {
        cross::run(&step, given)
    }
}

/// Shapes and types of results, before anything has run.
#[cfg(feature = "fusion")]
fn described(
    step: &Step,
    given: &crate::operands::Each<TensorSpec>,
) -> crate::operands::Each<TensorSpec> {
    let own = |spec: &TensorSpec| {
        let dtype = cross::own_dtype(spec.dtype).unwrap_or(attn_wgpu::DType::F32);
        Spec::new(spec.shape.to_vec(), dtype)
    };
    let given: Vec<_> = given.floats.iter().chain(&given.ints).map(own).collect();
    let outputs = step.outputs(&given).unwrap_or_else(|error| fail(step.name(), &error));
    let of = |float: bool| {
        let those = outputs.iter().filter(|spec| spec.is_float() == float);
        let spec =
            |own: &Spec| TensorSpec::new(own.shape.clone().into(), cross::burn_dtype(own.dtype));
        those.map(spec).collect()
    };
    crate::operands::Each { floats: of(true), ints: of(false) }
}

impl<B: Run, C: CheckpointStrategy> Run for Autodiff<B, C> {
    fn run(step: Step, given: Operands<Self>) -> Operands<Self> {
        if step.is_backward() {
            let name = format!("the gradient of {}", step.name());
            fail(step.name(), &attn_wgpu::Error::NotDifferentiable { name });
        }
        // Burn's graph knows operations by their number of inputs.
        match given.floats.len() {
            1 => recorded::<B, C, 1>(step, given),
            2 => recorded::<B, C, 2>(step, given),
            3 => recorded::<B, C, 3>(step, given),
            4 => recorded::<B, C, 4>(step, given),
            5 => recorded::<B, C, 5>(step, given),
            6 => recorded::<B, C, 6>(step, given),
            7 => recorded::<B, C, 7>(step, given),
            _ => recorded::<B, C, MAX_FLOATS>(step, given),
        }
    }
}

/// Float inputs of an operation at most.
const MAX_FLOATS: usize = 8;

fn recorded<B: Run, C: CheckpointStrategy, const N: usize>(
    step: Step,
    given: Operands<Autodiff<B, C>>,
) -> Operands<Autodiff<B, C>> {
    let ints = given.ints;
    let Ok(floats) = <[_; N]>::try_from(given.floats) else {
        let error = crate::operation::kernel_error(step.name(), "too many float inputs");
        fail(step.name(), &error)
    };
    let guards = floats.each_ref().map(|float: &FloatTensor<Autodiff<B, C>>| float.node());
    let inner = |floats: [FloatTensor<Autodiff<B, C>>; N], ints: Vec<IntTensor<B>>| Operands {
        floats: floats.map(|float| float.into_primitive()).into(),
        ints,
    };
    let constant = |float| <Autodiff<B, C> as AutodiffBackend>::from_inner(float);
    if !step.is_differentiable() {
        let made = B::run(step, inner(floats, ints));
        return Operands {
            floats: made.floats.into_iter().map(constant).collect(),
            ints: made.ints,
        };
    }
    let (first, others) = match (Passed).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let inputs = floats.each_ref().map(|float| prepared.checkpoint(float));
            let step = step.keeping();
            let mut outputs = B::run(step.clone(), inner(floats, ints.clone()));
            let state = State { step, inputs, ints, outputs: outputs.clone() };
            let first = outputs.floats.remove(0);
            (prepared.finish(state, first), outputs)
        }
        OpsKind::UnTracked(prepared) => {
            let mut outputs = B::run(step, inner(floats, ints));
            let first = outputs.floats.remove(0);
            (prepared.finish(first), outputs)
        }
    };
    let others_floats = others.floats.into_iter().map(constant);
    Operands { floats: [first].into_iter().chain(others_floats).collect(), ints: others.ints }
}

/// A forward pass that has passed, for burn's graph.
#[derive(Debug)]
struct Passed;

#[derive(Debug)]
struct State<B: Backend, const N: usize> {
    step: Step,
    inputs: [NodeId; N],
    ints: Vec<IntTensor<B>>,
    outputs: Operands<B>,
}

impl<B: Backend, const N: usize> Clone for State<B, N> {
    fn clone(&self) -> Self {
        let State { step, inputs, ints, outputs } = self;
        State { step: step.clone(), inputs: *inputs, ints: ints.clone(), outputs: outputs.clone() }
    }
}

impl<B: Run, const N: usize> AutodiffBackward<B, N> for Passed {
    type State = State<B, N>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let State { step, inputs, ints, outputs } = ops.state;
        let cotangent = grads.consume::<B>(&ops.node);
        let layout = Layout {
            float_inputs: N,
            int_inputs: ints.len(),
            float_outputs: outputs.floats.len(),
            int_outputs: outputs.ints.len(),
            wanted: ops.parents.iter().map(Option::is_some).collect(),
        };
        let inputs = inputs.map(|node| checkpointer.retrieve_node_output(node));
        let floats = inputs.into_iter().chain(outputs.floats).chain([cotangent]).collect();
        let ints = ints.into_iter().chain(outputs.ints).collect();
        let found = B::run(step.backward(layout), Operands { floats, ints });
        for (parent, gradient) in ops.parents.iter().flatten().zip(found.floats) {
            grads.register::<B>(parent.id, gradient);
        }
    }
}

/// Inputs of an operation: floats, at most eight, and integers.
#[derive(Debug, Default)]
pub struct Inputs {
    given: Option<Operands<Dispatch>>,
    floats: Vec<(Vec<usize>, BurnDType)>,
    ints: Vec<(Vec<usize>, BurnDType)>,
    devices: Vec<Device>,
}

impl Inputs {
    /// No input yet.
    pub fn new() -> Self {
        Inputs::default()
    }

    /// One more float.
    pub fn float<const D: usize>(mut self, tensor: Tensor<D>) -> Self {
        self.floats.push((tensor.shape().to_vec(), tensor.dtype()));
        self.devices.push(tensor.device());
        self.given.get_or_insert_default().floats.push(tensor.into_dispatch());
        self
    }

    /// One more integer tensor.
    pub fn int<const D: usize>(mut self, tensor: Tensor<D, Int>) -> Self {
        self.ints.push((tensor.shape().to_vec(), tensor.dtype()));
        self.devices.push(tensor.device());
        self.given.get_or_insert_default().ints.push(tensor.into_dispatch());
        self
    }

    /// One more integer tensor, where there is one.
    pub fn maybe_int<const D: usize>(self, tensor: Option<Tensor<D, Int>>) -> Self {
        match tensor {
            Some(tensor) => self.int(tensor),
            None => self,
        }
    }

    fn specs(&self) -> Result<Vec<Spec>> {
        let spec = |(shape, dtype): &(Vec<usize>, BurnDType)| {
            let own = cross::own_dtype(*dtype).ok_or_else(|| CoreError::Dtype {
                arg: "inputs",
                expected: "f32, f16, bf16, i32 or u32".into(),
                got: format!("{dtype:?}"),
            })?;
            Ok(Spec::new(shape.clone(), own))
        };
        self.floats.iter().chain(&self.ints).map(spec).collect()
    }
}

/// Outputs of an operation, in its order.
#[derive(Debug)]
pub struct Outputs {
    floats: Vec<DispatchTensor>,
    ints: Vec<DispatchTensor>,
    /// Shapes of the differentiable outputs and their places in the first float, where there are several.
    packed: Vec<(Vec<usize>, usize)>,
}

impl Outputs {
    /// The next float output.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where there is none of this rank.
    pub fn float<const D: usize>(&mut self) -> Result<Tensor<D>> {
        if self.packed.is_empty() {
            return Ok(Tensor::from_dispatch(next(&mut self.floats)?));
        }
        let (shape, start) = self.packed.remove(0);
        let Ok(extents) = <[usize; D]>::try_from(shape.clone()) else {
            return Err(CoreError::config("outputs", format!("rank {}", shape.len()), D).into());
        };
        let whole = match self.packed.is_empty() {
            true => next(&mut self.floats)?,
            false => self.floats.first().cloned().ok_or_else(no_more)?,
        };
        let length = shape.iter().product::<usize>();
        let whole = Tensor::<1>::from_dispatch(whole);
        Ok(whole.narrow(0, start, length).reshape(extents))
    }

    /// The next integer output.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where there is none.
    pub fn int<const D: usize>(&mut self) -> Result<Tensor<D, Int>> {
        Ok(Tensor::from_dispatch(next(&mut self.ints)?))
    }
}

fn next(tensors: &mut Vec<DispatchTensor>) -> Result<DispatchTensor> {
    if tensors.is_empty() { Err(no_more()) } else { Ok(tensors.remove(0)) }
}

fn no_more() -> attn_wgpu::Error {
    CoreError::config("outputs", "as many as the operation has", "one more").into()
}

/// Runs an operation on tensors of one device, and makes it a node of burn's graph where gradients are on.
///
/// # Errors
/// Those of [`Operation::outputs`]; [`attn_core::Error::Config`] for tensors of a device that is not shared
/// with this crate ([`device`](crate::device())), or of several devices, for more than eight floats, and for
/// none. What the device reports later is burn's to tell: it panics, as burn's own operations do, under
/// fusion at the next read.
pub fn apply(op: impl Operation, inputs: Inputs) -> Result<Outputs> {
    let specs = inputs.specs()?;
    if !(1..=MAX_FLOATS).contains(&inputs.floats.len()) {
        let expected = format!("1 to {MAX_FLOATS} floats");
        return Err(CoreError::config("inputs", expected, inputs.floats.len()).into());
    }
    let shared = inputs.devices.iter().map(device::gpu).collect::<Result<Vec<_>>>()?;
    if shared.iter().any(|gpu| !gpu.is_same(&shared[0])) {
        return Err(CoreError::config("inputs", "one device", "several").into());
    }
    let own = op.outputs(&specs)?;
    let differentiable = op.differentiable();
    let mut packed = Vec::new();
    let mut op: Arc<dyn Erased> = Arc::new(op);
    if differentiable > 1 {
        let parts = &own[..differentiable.min(own.len())];
        let shapes = parts.iter().map(|part| part.shape.clone());
        packed = shapes.zip(places(parts).0).collect();
        op = Arc::new(Packed(op));
        op.outputs(&specs)?;
    }
    let Operands { floats, ints } =
        <Dispatch as Run>::run(Step::forward(op), inputs.given.unwrap_or_default());
    Ok(Outputs { floats, ints, packed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Backward;

    #[derive(Debug)]
    struct Nothing;

    impl Operation for Nothing {
        type Saved = ();

        fn name(&self) -> &'static str {
            "nothing"
        }

        fn outputs(&self, _: &[Spec]) -> Result<Vec<Spec>> {
            Ok(Vec::new())
        }

        fn forward(
            &self,
            _: &attn_wgpu::Gpu,
            _: &[attn_wgpu::Tensor],
            _: &[attn_wgpu::Tensor],
        ) -> Result<()> {
            Ok(())
        }

        fn backward(&self, _: &attn_wgpu::Gpu, _: Backward<'_, ()>) -> Result<()> {
            Ok(())
        }
    }

    /// As it is run for the second derivative in a graph of graphs, which burn's devices do not offer.
    #[test]
    fn gradients_have_no_derivative() {
        let layout = Layout {
            float_inputs: 0,
            int_inputs: 0,
            float_outputs: 0,
            int_outputs: 0,
            wanted: Vec::new(),
        };
        let step = Step::forward(Arc::new(Nothing)).backward(layout);
        let run = || <Autodiff<CubeBackend> as Run>::run(step, Operands::default());
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let message = refused.downcast_ref::<String>().unwrap();
        assert!(message.contains("the gradient of nothing"), "{message}");
    }
}
