//! Operations with a forward and a backward pass on the tensors of `attn-wgpu`, and the steps that run them.

use std::any::Any;
use std::fmt::{Debug, Display};
use std::sync::{Arc, Mutex, PoisonError};

use attn_core::Error as CoreError;
use attn_wgpu::{DType, Error, Gpu, Result, Tensor};

/// Shape and type of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Extents.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub dtype: DType,
}

impl Spec {
    /// Of a tensor of this shape and type.
    pub fn new(shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Spec { shape: shape.into(), dtype }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_float(&self) -> bool {
        !matches!(self.dtype, DType::I32 | DType::U32)
    }
}

/// What burn needs to know of an operation. The README has the recipe.
///
/// Tensors are views of burn's memory, valid during the call and no longer: their layout is burn's, any
/// strides, and several may share a buffer. Both passes only record; they run on burn's device thread,
/// under `fusion` later than the call that asked for them.
pub trait Operation: Debug + Send + Sync + 'static {
    /// What the forward pass leaves for the backward pass beside inputs and outputs, which are given again:
    /// anything but handles of those. It lives as long as burn's graph.
    type Saved: Send + Sync + 'static;

    /// The name in errors.
    fn name(&self) -> &'static str;

    /// Shapes and types of the outputs, after a check of the inputs: floats first, and of these the
    /// differentiable ones. Fusion hands on these shapes before anything has run.
    ///
    /// # Errors
    /// Those of arguments that do not fit.
    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>>;

    /// How many outputs, from the first, have gradients. Several must be of one type.
    fn differentiable(&self) -> usize {
        1
    }

    /// Records the outputs.
    ///
    /// # Errors
    /// Those of the device: arguments were checked by [`Operation::outputs`].
    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Self::Saved>;

    /// Records the gradients that are wanted.
    ///
    /// # Errors
    /// Those of the device.
    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Self::Saved>) -> Result<()>;
}

/// What a backward pass is given.
#[derive(Debug)]
pub struct Backward<'a, S: ?Sized> {
    /// Inputs of the forward pass: floats, then integers.
    pub inputs: &'a [Tensor],
    /// Its outputs.
    pub outputs: &'a [Tensor],
    /// What it left.
    pub saved: &'a S,
    /// Cotangents of the differentiable outputs, in any layout.
    pub cotangents: &'a [Tensor],
    /// Where the gradient of each float input goes, contiguous; none where nobody wants it.
    pub gradients: &'a [Option<Tensor>],
}

impl<S: ?Sized> Backward<'_, S> {
    /// Where the gradient of float input `index` goes; none where nobody wants it, or there is no such input.
    pub fn gradient(&self, index: usize) -> Option<&Tensor> {
        self.gradients.get(index)?.as_ref()
    }
}

pub(crate) type Kept = Box<dyn Any + Send + Sync>;

/// An [`Operation`] whose type is forgotten.
pub(crate) trait Erased: Debug + Send + Sync {
    fn name(&self) -> &'static str;
    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>>;
    fn differentiable(&self) -> usize;
    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Kept>;
    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Kept>) -> Result<()>;
}

impl<O: Operation> Erased for O {
    fn name(&self) -> &'static str {
        Operation::name(self)
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Operation::outputs(self, inputs)
    }

    fn differentiable(&self) -> usize {
        Operation::differentiable(self)
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Kept> {
        Ok(Box::new(Operation::forward(self, gpu, inputs, outputs)?))
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Kept>) -> Result<()> {
        let Backward { inputs, outputs, saved, cotangents, gradients } = pass;
        let saved = saved.downcast_ref::<O::Saved>();
        let saved = saved.ok_or_else(|| kernel_error(Operation::name(self), "of another type"))?;
        let pass = Backward { inputs, outputs, saved, cotangents, gradients };
        Operation::backward(self, gpu, pass)
    }
}

/// One run of one pass, as burn's backends get it.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    op: Arc<dyn Erased>,
    /// Where the forward pass leaves what it saves. Under fusion both passes run later than they are asked
    /// for, so this is filled in between.
    kept: Option<Arc<Mutex<Option<Kept>>>>,
    pass: Pass,
}

#[derive(Debug, Clone)]
enum Pass {
    Forward,
    Backward(Layout),
}

/// Which tensors of a backward pass are what: floats are inputs, outputs and cotangents; integers are inputs
/// and outputs.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) float_inputs: usize,
    pub(crate) int_inputs: usize,
    pub(crate) float_outputs: usize,
    pub(crate) int_outputs: usize,
    /// For each float input, whether its gradient is wanted.
    pub(crate) wanted: Vec<bool>,
}

impl Step {
    pub(crate) fn forward(op: Arc<dyn Erased>) -> Step {
        Step { op, kept: None, pass: Pass::Forward }
    }

    /// The same, keeping what its backward pass needs.
    pub(crate) fn keeping(self) -> Step {
        Step { kept: Some(Arc::default()), ..self }
    }

    pub(crate) fn backward(self, layout: Layout) -> Step {
        Step { pass: Pass::Backward(layout), ..self }
    }

    pub(crate) fn is_backward(&self) -> bool {
        matches!(self.pass, Pass::Backward(_))
    }

    pub(crate) fn is_differentiable(&self) -> bool {
        self.op.differentiable() > 0
    }

    pub(crate) fn name(&self) -> &'static str {
        self.op.name()
    }

    /// What comes out: for a backward pass the wanted gradients.
    pub(crate) fn outputs(&self, given: &[Spec]) -> Result<Vec<Spec>> {
        match &self.pass {
            Pass::Forward => self.op.outputs(given),
            Pass::Backward(layout) => {
                let wanted = given.iter().zip(&layout.wanted).filter(|(_, wanted)| **wanted);
                Ok(wanted.map(|(spec, _)| spec.clone()).collect())
            }
        }
    }

    pub(crate) fn record(&self, gpu: &Gpu, given: &[Tensor], targets: &[Tensor]) -> Result<()> {
        match &self.pass {
            Pass::Forward => {
                let saved = self.op.forward(gpu, given, targets)?;
                if let Some(kept) = &self.kept {
                    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
                }
                Ok(())
            }
            Pass::Backward(layout) => self.record_backward(gpu, given, targets, layout),
        }
    }

    fn record_backward(
        &self,
        gpu: &Gpu,
        given: &[Tensor],
        targets: &[Tensor],
        layout: &Layout,
    ) -> Result<()> {
        let missing = || kernel_error(self.name(), "the forward pass did not run");
        let kept = self.kept.as_ref().ok_or_else(missing)?;
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let ints = given.len() - layout.int_inputs - layout.int_outputs;
        let (floats, ints) = given.split_at(ints);
        let (float_inputs, rest) = floats.split_at(layout.float_inputs);
        let (float_outputs, cotangents) = rest.split_at(layout.float_outputs);
        let (int_inputs, int_outputs) = ints.split_at(layout.int_inputs);
        let mut targets = targets.iter().cloned();
        let mut target = |wanted: &bool| wanted.then(|| targets.next()).flatten();
        let gradients: Vec<_> = layout.wanted.iter().map(&mut target).collect();
        self.op.backward(
            gpu,
            Backward {
                inputs: &[float_inputs, int_inputs].concat(),
                outputs: &[float_outputs, int_outputs].concat(),
                saved: kept.as_ref().ok_or_else(missing)?,
                cotangents,
                gradients: &gradients,
            },
        )
    }
}

/// Several differentiable outputs as one, since a node of burn's graph has one gradient: the outputs lie
/// one behind the other, each at an aligned place, and slices of the whole are handed out.
#[derive(Debug)]
pub(crate) struct Packed(pub(crate) Arc<dyn Erased>);

/// Elements between the places of packed outputs: the largest alignment that WebGPU asks for, in bytes of
/// the smallest type.
const ALIGNMENT: usize = 128;

/// Where packed outputs begin, and the length of the whole.
pub(crate) fn places(outputs: &[Spec]) -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = outputs.iter().map(|spec| {
        let start = end;
        end += spec.len().next_multiple_of(ALIGNMENT);
        start
    });
    (starts.collect(), end)
}

impl Packed {
    /// The packed tensor as its parts, then the others.
    fn unpack(&self, inputs: &[Tensor], packed: &[Tensor], whole: usize) -> Result<Vec<Tensor>> {
        let specs: Vec<_> = inputs.iter().map(|x| Spec::new(x.shape(), x.dtype())).collect();
        let own = self.0.outputs(&specs)?;
        let parts = &own[..self.0.differentiable()];
        let (starts, _) = places(parts);
        let (flat, rest) = packed.split_at(whole);
        let flat = flat.first().ok_or_else(|| kernel_error(self.0.name(), "no packed output"))?;
        let flat = flat.contiguous()?;
        let views = parts
            .iter()
            .zip(starts)
            .map(|(part, start)| flat.narrow(0, start, part.len())?.reshape(&part.shape));
        views.chain(rest.iter().map(|tensor| Ok(tensor.clone()))).collect()
    }
}

impl Erased for Packed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let own = self.0.outputs(inputs)?;
        let (parts, rest) = own.split_at(self.0.differentiable());
        let dtype = parts[0].dtype;
        if parts.iter().any(|part| part.dtype != dtype) {
            let got = format!("{parts:?}");
            return Err(
                CoreError::config("outputs", "differentiable outputs of one type", got).into()
            );
        }
        let packed = Spec::new([places(parts).1], dtype);
        Ok([packed].into_iter().chain(rest.iter().cloned()).collect())
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Kept> {
        self.0.forward(gpu, inputs, &self.unpack(inputs, outputs, 1)?)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Kept>) -> Result<()> {
        let outputs = self.unpack(pass.inputs, pass.outputs, 1)?;
        let cotangents = self.unpack(pass.inputs, pass.cotangents, 1)?;
        self.0.backward(gpu, Backward { outputs: &outputs, cotangents: &cotangents, ..pass })
    }
}

/// Ends an operation of a burn backend, which cannot return an error. Without fusion it surfaces at the
/// call, with fusion as the error of the next read.
pub(crate) fn fail(name: &str, error: &Error) -> ! {
    std::panic::panic_any(format!("{name}: {error}"))
}

pub(crate) fn kernel_error(name: &str, reason: impl Display) -> Error {
    Error::Kernel { kernel: name.into(), reason: reason.to_string() }
}
