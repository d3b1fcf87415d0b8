//! The kernels on rows in the variants that devices get.

use super::{Sharing, elementwise, storage};
use crate::activation::Activation;
use crate::capabilities::Capabilities;
use crate::elementwise::{Function, MAP};
use crate::embedding::{GATHER_ROWS, scatter};
use crate::kernel::{Constants, KernelSource};
use crate::norm::{self, NORM, simple::SIMPLE};
use crate::ops;
use crate::rope::{Layout, ROPE, RopeTable};
use crate::sample::{self, Sampling};
use crate::softmax::{self, LOG_SOFTMAX, SOFTMAX};
use crate::tensor::DType;

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// One kernel, its constants, and the variant in words.
pub(crate) type Variant = (KernelSource, Constants, String);

/// Every variant of every kernel on rows.
pub(crate) fn variants(capabilities: &Capabilities) -> Vec<Variant> {
    let mut list = Vec::new();
    maps(&mut list, capabilities);
    reductions(&mut list, capabilities);
    choices(&mut list, capabilities);
    scatters(&mut list, capabilities);
    list
}

fn maps(list: &mut Vec<Variant>, capabilities: &Capabilities) {
    let (constants, _) = elementwise(capabilities);
    let plain = [Function::Convert, Function::Add, Function::SoftCap(1.0), Function::Scale(1.0)];
    let functions = plain.into_iter().chain(Activation::ALL.map(Function::Gate));
    let functions: Vec<Function> = functions.collect();
    for (source, target) in pairs() {
        let types = format!("{} to {}", source.name(), target.name());
        let constants = || storage(constants.clone(), source, Some(target));
        for &function in &functions {
            list.push((MAP, function.constants(constants()), format!("{function:?}, {types}")));
        }
        list.push((GATHER_ROWS, constants(), types.clone()));
        for (layout, count) in [(Layout::Half, 4), (Layout::Half, 1), (Layout::Interleaved, 1)] {
            let constants =
                RopeTable::constants(elementwise(capabilities).0, layout, count, source, target);
            list.push((ROPE, constants, format!("{layout:?}, {count} pairs, {types}")));
        }
    }
    let ranks = Constants::new().int("WORKGROUP", ops::workgroup(capabilities));
    list.push((sample::TOP_K_RANK, ranks, "any".into()));
}

fn reductions(list: &mut Vec<Variant>, capabilities: &Capabilities) {
    for (sharing, types) in sharings(norm::PASSES, capabilities) {
        for (source, target) in types.pairs() {
            for flag in ["", "ADD", "LAYER"] {
                let constants = storage(sharing.constants(), source, Some(target));
                let constants = constants.flag(flag, !flag.is_empty());
                let rest = format!("to {} {flag}", target.name());
                list.push((NORM, constants, words(&sharing, source, &rest)));
            }
            for flag in ["", "BACKWARD"] {
                let constants = storage(sharing.constants(), source, Some(target));
                let constants = constants.flag(flag, !flag.is_empty());
                let rest = format!("to {} {flag}", target.name());
                list.push((SIMPLE, constants, words(&sharing, source, &rest)));
            }
        }
    }
    for (sharing, types) in sharings(softmax::PASSES, capabilities) {
        for (source, target) in types.pairs() {
            let constants = storage(sharing.constants(), source, Some(target));
            let rest = format!("to {}", target.name());
            list.push((SOFTMAX, constants, words(&sharing, source, &rest)));
        }
        for &source in types.0 {
            for (target, cap) in [(false, false), (true, false), (true, true)] {
                let constants = storage(sharing.constants(), source, None)
                    .flag("TARGET", target)
                    .flag("SOFT_CAP", cap);
                let flags = format!("target {target}, soft cap {cap}");
                list.push((LOG_SOFTMAX, constants, words(&sharing, source, &flags)));
            }
        }
    }
}

fn scatters(list: &mut Vec<Variant>, capabilities: &Capabilities) {
    let (constants, _) = scatter::constants(capabilities, super::ITEMS);
    list.push((scatter::COUNTS, constants, "any".into()));
    for dtype in TYPES {
        for bits in 0..8u8 {
            let (weights, pieces, accumulate) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
            let flags = scatter::Flags { weights, pieces, accumulate };
            let words = format!("{}, {flags:?}", dtype.name());
            list.push((scatter::ROWS, flags.constants(capabilities, dtype), words.clone()));
            if !pieces && !accumulate {
                list.push((scatter::PIECES, flags.constants(capabilities, dtype), words));
            }
        }
    }
}

fn choices(list: &mut Vec<Variant>, capabilities: &Capabilities) {
    let whole = [(sample::ARGMAX, sample::ARGMAX_PASSES), (sample::TOP_K, sample::TOP_K_PASSES)];
    for (kernel, passes) in whole {
        for (sharing, types) in sharings(passes, capabilities) {
            for &source in types.0 {
                let constants = storage(sharing.constants(), source, None);
                list.push((kernel, constants, words(&sharing, source, "")));
            }
        }
    }
    for (sharing, types) in sharings(sample::SAMPLE_PASSES, capabilities) {
        for &source in types.0 {
            for bits in 0..8u8 {
                let sampling = Sampling {
                    temperature: 1.0,
                    top_k: (bits & 1 > 0).then_some(1),
                    top_p: if bits & 2 > 0 { 0.5 } else { 1.0 },
                    min_p: if bits & 4 > 0 { 0.5 } else { 0.0 },
                };
                let constants = sample::flags(&sampling, 2, sharing.constants(), source);
                list.push((sample::SAMPLE, constants, words(&sharing, source, &format!("{bits}"))));
            }
        }
    }
}

fn words(sharing: &Sharing, source: DType, rest: &str) -> String {
    format!("{} lanes, {} {rest}", sharing.lanes, source.name())
}

/// Types of source and target.
fn pairs() -> impl Iterator<Item = (DType, DType)> {
    Types(&TYPES).pairs()
}

/// Storage types to combine.
struct Types(&'static [DType]);

impl Types {
    fn pairs(&self) -> impl Iterator<Item = (DType, DType)> + use<> {
        let types = self.0;
        types.iter().flat_map(move |&source| types.iter().map(move |&target| (source, target)))
    }
}

/// How rows of any width are shared; types are combined for one of them.
fn sharings(passes: usize, capabilities: &Capabilities) -> Vec<(Sharing, Types)> {
    let paired = Sharing::new(PAIRED, passes, capabilities);
    let mut found = vec![(paired, Types(&TYPES))];
    for bits in 0..=22 {
        let sharing = Sharing::new(1 << bits, passes, capabilities);
        if found.iter().all(|(known, _)| *known != sharing) {
            found.push((sharing, Types(&[DType::F32])));
        }
    }
    found
}

/// The width for which types are combined.
const PAIRED: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::norm::RmsNorm;
    use crate::rope::Rope;
    use crate::testing;
    use crate::{Gpu, Result, Tensor, embedding, sample as choose, softmax as soft};

    /// Calls that need every kernel, some in several variants.
    fn calls(gpu: &Gpu) -> Result<()> {
        let numbers = Tensor::zeros(gpu, &[3], DType::U32)?;
        let uniform = Tensor::zeros(gpu, &[3], DType::F32)?;
        for (width, dtype) in [(5, DType::F32), (1024, DType::F16), (9000, DType::F32)] {
            let x = Tensor::zeros(gpu, &[3, width], dtype)?;
            let weight = Tensor::zeros(gpu, &[width], DType::F32)?;
            let config = RmsNorm::new(1e-6).with_dtype(dtype);
            norm::rms_norm(&x, &weight, &config)?;
            norm::rms_norm_add(&x, &x, &weight, &config)?;
            norm::layer_norm(&x, &weight, &weight, 1e-6)?;
            norm::simple_rms_norm(&x, 1e-6)?;
            norm::simple_rms_norm_backward(&x, &x, 1e-6)?;
            soft::softmax(&x)?;
            soft::log_sum_exp(&x)?;
            soft::log_softmax_gather(&x, &numbers, None)?;
            soft::log_softmax_gather(&x, &numbers, Some(30.0))?;
            choose::argmax(&x)?;
            choose::top_k(&x, 2)?;
            for (top_k, top_p, min_p) in [(None, 1.0, 0.0), (Some(3), 0.5, 0.1)] {
                let sampling = Sampling { temperature: 1.0, top_k, top_p, min_p };
                choose::sample(&x, &sampling, &uniform)?;
            }
            ops::convert(&x, DType::BF16)?;
            ops::soft_cap(&x, 30.0)?;
            ops::add(&x, &x)?;
            ops::gated(&x, &x, Activation::Silu)?;
            embedding::gather_rows(&x, &numbers, 1.0, DType::BF16)?;
            embedding::scatter_add_rows(&numbers, &x, 2)?;
            let many = Tensor::zeros(gpu, &[300], DType::U32)?;
            let lists = embedding::RowLists::new(&many, 2)?;
            let weights = Tensor::zeros(gpu, &[300], DType::F32)?;
            let call = embedding::ScatterRows::new(&x).with_weights(&weights);
            lists.sum_into(call.accumulating(), &lists.sum(call)?)?;
        }
        for dims in [6, 8] {
            let x = Tensor::zeros(gpu, &[1, 2, 3, 8], DType::F32)?;
            for layout in [Layout::Half, Layout::Interleaved] {
                let rope = Rope::new(dims, 1e4)?.with_layout(layout);
                RopeTable::new(gpu, rope, 10)?.apply(&x, &numbers)?;
            }
        }
        Ok(())
    }

    #[test]
    fn what_runs_is_listed() {
        let Some(gpu) = testing::open() else { return };
        let ((), profile) = gpu.profile(|| calls(&gpu)).unwrap();
        let ran: HashSet<String> = profile.kernels.into_iter().map(|time| time.kernel).collect();
        let variants = variants(gpu.capabilities());
        let names: HashSet<&str> = variants.iter().map(|(source, ..)| source.name).collect();
        for name in &names {
            assert!(
                ran.iter().any(|label| label.starts_with(&format!("{name} "))),
                "{name}: {ran:?}"
            );
        }
        let label = |(source, constants, _): Variant| {
            gpu.kernel(&source, constants).unwrap().label().to_string()
        };
        let listed: HashSet<String> = variants.into_iter().map(label).collect();
        for label in ran {
            let is_ours = names.iter().any(|name| label.starts_with(&format!("{name} ")));
            assert!(!is_ours || listed.contains(&label), "{label} runs and is not listed");
        }
    }
}
