//! Lists of tensors of any length as arguments and results of a backend's operation.
//!
//! Burn's macro derives this for structs with a fixed number of tensors; a list needs it by hand.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    ExtensionType,
};

/// Tensors of one backend: floats, then integers.
#[derive(Debug)]
pub(crate) struct Operands<B: Backend> {
    pub(crate) floats: Vec<FloatTensor<B>>,
    pub(crate) ints: Vec<IntTensor<B>>,
}

impl<B: Backend> Default for Operands<B> {
    fn default() -> Self {
        Operands { floats: Vec::new(), ints: Vec::new() }
    }
}

impl<B: Backend> Clone for Operands<B> {
    fn clone(&self) -> Self {
        Operands { floats: self.floats.clone(), ints: self.ints.clone() }
    }
}

impl<B: Backend> ExtensionType<B> for Operands<B> {
    type Target = Operands<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Self::Target
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        let tensor = |tensor| DispatchTensor { kind: map_kind(tensor), autodiff };
        Operands {
            floats: self.floats.into_iter().map(|x| tensor(BackendTensor::Float(x))).collect(),
            ints: self.ints.into_iter().map(|x| tensor(BackendTensor::Int(x))).collect(),
        }
    }

    fn map_from_dispatch<F>(target: Self::Target, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        Operands {
            floats: target.floats.into_iter().map(|x| unwrap_kind(x).float()).collect(),
            ints: target.ints.into_iter().map(|x| unwrap_kind(x).int()).collect(),
        }
    }

    fn routing_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        target.floats.first().or(target.ints.first())
    }

    fn routing_float_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        target.floats.first()
    }

    fn autodiff_context(target: &Self::Target) -> DispatchAutodiffContext {
        let all = target.floats.iter().chain(&target.ints);
        all.fold(DispatchAutodiffContext::Disabled, |merged, x| merged.merge(x.autodiff))
    }
}

#[cfg(feature = "fusion")]
mod fused {
    use burn::backend::fusion::custom::{
        ExtensionMetadata, Float, FusionValueAdapter, HandleContainer, Int, OutputTensor, TensorId,
        TensorIr, TensorSpec,
    };
    use burn::backend::fusion::{
        ExecutionError, Fusion, FusionBackend, FusionRuntime, FusionTensor,
    };

    use super::{Backend, Operands};

    type Handles<B> =
        HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

    /// One thing for each float and for each integer.
    #[doc(hidden)]
    #[derive(Clone, Debug)]
    pub struct Each<T> {
        pub(crate) floats: Vec<T>,
        pub(crate) ints: Vec<T>,
    }

    impl<B: Backend> ExtensionMetadata for Operands<B> {
        type Metadata = Each<TensorSpec>;
        type Input = Each<TensorIr>;
        type Output = Each<OutputTensor>;
    }

    impl<B: FusionBackend> FusionValueAdapter<B> for Operands<B> {
        type Metadata = Each<TensorSpec>;
        type Input = Each<TensorIr>;
        type Output = Each<OutputTensor>;
        type Inner = Self;
        type Fused = Operands<Fusion<B>>;

        fn to_metadata(value: &Self::Fused) -> Self::Metadata {
            let floats = value.floats.iter().map(<Float as FusionValueAdapter<B>>::to_metadata);
            let ints = value.ints.iter().map(<Int as FusionValueAdapter<B>>::to_metadata);
            Each { floats: floats.collect(), ints: ints.collect() }
        }

        fn visit_fused_tensors(
            value: &Self::Fused,
            visit: &mut impl FnMut(&FusionTensor<B::FusionRuntime>),
        ) {
            value.floats.iter().chain(&value.ints).for_each(visit);
        }

        fn tensor_count(meta: &Self::Metadata) -> usize {
            meta.floats.len() + meta.ints.len()
        }

        fn append_input_ir(value: Self::Fused, inputs: &mut Vec<TensorIr>) -> Self::Input {
            let mut each = |tensor: FusionTensor<B::FusionRuntime>| {
                <Float as FusionValueAdapter<B>>::append_input_ir(tensor, inputs)
            };
            let floats = value.floats.into_iter().map(&mut each).collect();
            Each { floats, ints: value.ints.into_iter().map(&mut each).collect() }
        }

        fn resolve_inputs(input: &Self::Input, handles: &mut Handles<B>) -> Self {
            let float = |ir| <Float as FusionValueAdapter<B>>::resolve_inputs(ir, handles);
            let floats = input.floats.iter().map(float).collect();
            let int = |ir| <Int as FusionValueAdapter<B>>::resolve_inputs(ir, handles);
            Operands { floats, ints: input.ints.iter().map(int).collect() }
        }

        fn append_output_ir(
            meta: &Self::Metadata,
            out: &mut Vec<TensorIr>,
            create: &mut impl FnMut() -> TensorId,
        ) -> Self::Output {
            let mut floats = Vec::new();
            for spec in &meta.floats {
                floats.push(<Float as FusionValueAdapter<B>>::append_output_ir(spec, out, create));
            }
            let mut ints = Vec::new();
            for spec in &meta.ints {
                ints.push(<Int as FusionValueAdapter<B>>::append_output_ir(spec, out, create));
            }
            Each { floats, ints }
        }

        fn validate_outputs(
            value: &Self,
            output: &Self::Output,
            device: Option<&B::Device>,
        ) -> Result<(), ExecutionError> {
            for (tensor, own) in value.floats.iter().zip(&output.floats) {
                <Float as FusionValueAdapter<B>>::validate_outputs(tensor, own, device)?;
            }
            for (tensor, own) in value.ints.iter().zip(&output.ints) {
                <Int as FusionValueAdapter<B>>::validate_outputs(tensor, own, device)?;
            }
            Ok(())
        }

        fn register_output_handles(value: Self, output: &Self::Output, handles: &mut Handles<B>) {
            for (tensor, own) in value.floats.into_iter().zip(&output.floats) {
                <Float as FusionValueAdapter<B>>::register_output_handles(tensor, own, handles);
            }
            for (tensor, own) in value.ints.into_iter().zip(&output.ints) {
                <Int as FusionValueAdapter<B>>::register_output_handles(tensor, own, handles);
            }
        }

        fn build_fused_output(
            meta: &Self::Metadata,
            tensors: &mut std::vec::IntoIter<FusionTensor<B::FusionRuntime>>,
        ) -> Self::Fused {
            let floats = tensors.by_ref().take(meta.floats.len()).collect();
            Operands { floats, ints: tensors.by_ref().take(meta.ints.len()).collect() }
        }
    }
}

#[cfg(feature = "fusion")]
pub use fused::Each;
