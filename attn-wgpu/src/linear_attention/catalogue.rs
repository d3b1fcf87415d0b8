//! The kernels of linear attention in the variants that devices get.

use super::decode::{self, DECODE};
use super::sweep::{PASS, pass_constants, rows_constants, rows_kernel, states_kernel};
use super::variant::Variant;
use crate::capabilities::Capabilities;
use crate::kernel::{Constants, KernelSource};
use crate::ops;
use crate::rows::storage;
use crate::tensor::DType;

/// Every variant of every kernel.
pub(crate) fn variants(capabilities: &Capabilities) -> Vec<(KernelSource, Constants, String)> {
    let mut list = Vec::new();
    let variant = Variant::of(capabilities);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let words = format!("{variant}, {}", dtype.name());
        for transposed in [false, true] {
            let constants = rows_constants(&variant, dtype, transposed);
            let state = if transposed { ", transposed state" } else { "" };
            list.push((rows_kernel(&variant), constants, format!("{words}{state}")));
        }
        let constants = storage(variant.constants(), dtype, None);
        list.push((states_kernel(&variant), constants, words));
        if variant == Variant::Tile {
            let lanes = ops::workgroup(capabilities);
            list.push((PASS, pass_constants(lanes, dtype), dtype.name().into()));
        }
        list.push((DECODE, decode::constants(dtype, capabilities), dtype.name().into()));
    }
    list
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::linear_attention::{Cotangents, Inputs, LinearAttention};
    use crate::{Gpu, Result, Tensor, testing};

    fn calls(gpu: &Gpu) -> Result<()> {
        let attention = LinearAttention::new(gpu, &[0.1, 0.0])?;
        for dtype in [DType::F32, DType::F16] {
            let x = Tensor::zeros(gpu, &[1, 2, 3, 8], dtype)?;
            let (output, saved) = attention.forward_saved(Inputs::new(&x, &x, &x))?;
            attention.backward(&saved, Cotangents::new(&output.out))?;
            let x = Tensor::zeros(gpu, &[1, 2, 1, 8], dtype)?;
            let out = Tensor::zeros(gpu, &[1, 2, 1, 8], dtype)?;
            attention.decode_into(Inputs::new(&x, &x, &x), &output.kv, &out)?;
        }
        Ok(())
    }

    #[test]
    fn what_runs_is_listed() {
        let Some(gpu) = testing::open() else { return };
        let ((), profile) = gpu.profile(|| calls(&gpu)).unwrap();
        let ours = |label: &String| label.starts_with("chunk_") || label.starts_with("linear_");
        let ran: HashSet<String> =
            profile.kernels.into_iter().map(|time| time.kernel).filter(ours).collect();
        assert!(ran.len() >= 8, "{ran:?}");
        let label =
            |(source, constants, _)| gpu.kernel(&source, constants).unwrap().label().to_string();
        let listed: HashSet<String> = variants(gpu.capabilities()).into_iter().map(label).collect();
        for label in ran {
            assert!(listed.contains(&label), "{label} runs and is not listed");
        }
    }
}
