//! The kernels of packed weights in the variants that devices get: every block type with every number of
//! rows, and for one of them every choice of a call alone and all of them together.

use super::blocks::BlockType;
use super::gather::{GATHER, constants_of};
use super::product::{Form, source};
use super::variant::Variant;
use crate::activation::Activation;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::{Constants, KernelSource};
use crate::matmul::FEW_ROWS;
use crate::rows;
use crate::tensor::DType;

type Toggle = (&'static str, fn(&mut Form));

const TOGGLES: [Toggle; 8] = [
    ("a f16", |form| form.a = DType::F16),
    ("a bf16", |form| form.a = DType::BF16),
    ("bias f16", |form| form.bias = Some(DType::F16)),
    ("silu", |form| form.activation = Activation::Silu),
    ("residual", |form| form.residual = true),
    ("accumulating", |form| form.accumulate = true),
    ("out f16", |form| form.out = DType::F16),
    ("out bf16", |form| form.out = DType::BF16),
];

/// Lists the kernels of a device. Tests run each kernel on any device, so every device gets them all.
pub(crate) fn list(
    capabilities: &Capabilities,
    mut add: impl FnMut(KernelSource, Constants, String),
) {
    for kind in BlockType::ALL {
        let name = kind.name();
        for out in [DType::F32, DType::F16, DType::BF16] {
            let (constants, _) = rows::elementwise(capabilities);
            let constants = constants_of(kind, constants, out);
            add(GATHER, constants, format!("rows of {name} as {}", out.name()));
        }
        let mut add = |variant: &Variant, form: &Form, words: &str| {
            let words = format!("{variant}, {name}{words}");
            add(source(variant), form.constants(variant), words);
        };
        let plain = Form {
            kind,
            a: DType::F32,
            out: DType::F32,
            bias: None,
            activation: Activation::None,
            residual: false,
            accumulate: false,
            elements: false,
        };
        for device in [DeviceKind::Cpu, DeviceKind::Discrete] {
            let device = Capabilities { kind: device, ..capabilities.clone() };
            for rows in [1, 2, FEW_ROWS, 8, 16, 1024] {
                add(&Variant::of(rows, rows, &device), &plain, "");
            }
            if kind != BlockType::Q4_1 {
                continue;
            }
            for rows in [1, 1024] {
                let variant = Variant::of(rows, rows, &device);
                let elements = Form { elements: true, accumulate: true, ..plain };
                add(&variant, &elements, ", accumulating elements");
                let mut all = plain;
                for (words, toggle) in TOGGLES {
                    let mut form = plain;
                    toggle(&mut form);
                    add(&variant, &form, &format!(", {words}"));
                    toggle(&mut all);
                }
                add(&variant, &all, ", everything");
            }
        }
    }
}
