//! Every kernel of this crate in the variants that devices get (feature `bench`), for tools that
//! check kernels without running them.
//!
//! The product of all axes is large, so [`entries`] covers it: every head size, every number of
//! rows, every storage type and every flag, and at one head size every pair of storage types and
//! flags, and all flags at once.

use std::collections::HashSet;

use attn_core::{Modifier, ModifierKind};

use super::forward::{SNIPPETS, sliced};
use super::params::{Form, storage};
use super::variant::{MAX_DIM, Variant};
use super::weights::blocked;
use crate::capabilities::{Capabilities, DeviceKind, Subgroups};
use crate::kernel::{Constants, KernelSource};
use crate::ops;
use crate::tensor::DType;

/// One variant of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The file with its snippets.
    pub source: KernelSource,
    /// What the loader puts in front of it.
    pub constants: Constants,
    /// The variant in words, without the kernel's name.
    pub variant: String,
}

impl Entry {
    /// A variant of a kernel of another crate.
    pub fn new(source: KernelSource, constants: Constants, variant: String) -> Entry {
        Entry { source, constants, variant }
    }
}

/// Devices that differ in the variants they get, by name.
pub fn devices() -> Vec<(&'static str, Capabilities)> {
    use DeviceKind::{Cpu, Discrete, Integrated};
    let base = Capabilities::webgpu();
    let plain = |kind: DeviceKind| Capabilities {
        kind,
        max_loop_steps: kind.max_loop_steps(),
        ..base.clone()
    };
    let with = |kind: DeviceKind, min, max| Capabilities {
        kind,
        max_loop_steps: kind.max_loop_steps(),
        subgroups: Some(Subgroups { min, max }),
        immediate_bytes: 128,
        max_workgroup_threads: 1024,
        max_workgroup_bytes: 32 << 10,
        ..base.clone()
    };
    vec![
        ("software, 4 lanes", with(Cpu, 4, 4)),
        ("software, 8 lanes", with(Cpu, 8, 8)),
        ("software, 16 lanes", with(Cpu, 16, 16)),
        ("GPU, 8 to 32 lanes", with(Integrated, 8, 32)),
        ("GPU, 32 lanes", with(Discrete, 32, 32)),
        ("GPU, 64 lanes", with(Discrete, 64, 64)),
        ("software, WebGPU limits", plain(Cpu)),
        ("GPU, WebGPU limits", plain(Discrete)),
    ]
}

/// The kernels of a device, each variant once.
pub fn entries(capabilities: &Capabilities) -> Vec<Entry> {
    let mut list = List::default();
    attention(&mut list, capabilities);
    small(&mut list, ops::workgroup(capabilities));
    for (source, constants, variant) in crate::rows::catalogue::variants(capabilities) {
        list.add(source, constants, variant);
    }
    for (source, constants, variant) in crate::select::catalogue::variants(capabilities) {
        list.add(source, constants, variant);
    }
    for (source, constants, variant) in crate::scan::catalogue::variants(capabilities) {
        list.add(source, constants, variant);
    }
    for (source, constants, variant) in crate::plan::catalogue::variants(capabilities) {
        list.add(source, constants, variant);
    }
    for (source, constants, variant) in crate::linear_attention::catalogue::variants(capabilities) {
        list.add(source, constants, variant);
    }
    crate::matmul::catalogue::list(capabilities, |source, constants, variant| {
        list.add(source, constants, variant);
    });
    crate::packed::catalogue::list(capabilities, |source, constants, variant| {
        list.add(source, constants, variant);
    });
    list.entries
}

#[derive(Default)]
struct List {
    seen: HashSet<(&'static str, Constants)>,
    entries: Vec<Entry>,
}

impl List {
    fn add(&mut self, source: KernelSource, constants: Constants, variant: String) {
        if self.seen.insert((source.name, constants.clone())) {
            self.entries.push(Entry { source, constants, variant });
        }
    }
}

macro_rules! kernel {
    ($name:literal, $imports:expr) => {
        KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: $imports,
        }
    };
}

/// What a call asks of a kernel besides the head size.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    dtype: DType,
    soft_cap: bool,
    modifier: Option<ModifierKind>,
    bits: bool,
    sinks: bool,
    stats: bool,
}

impl Choice {
    const NOTHING: Choice = Choice {
        dtype: DType::F32,
        soft_cap: false,
        modifier: None,
        bits: false,
        sinks: false,
        stats: false,
    };

    fn words(&self) -> String {
        let flags = [
            (self.soft_cap, "soft cap"),
            (self.modifier == Some(ModifierKind::Score), "score modifier"),
            (self.modifier == Some(ModifierKind::Mask), "mask modifier"),
            (self.bits, "bit mask"),
            (self.sinks, "sinks"),
            (self.stats, "row maxima"),
        ];
        let on = flags.iter().filter(|(on, _)| *on).map(|(_, name)| format!(", {name}"));
        format!(", {}{}", self.dtype.name(), on.collect::<String>())
    }
}

type Toggle = fn(&mut Choice);

/// What changes the logits; all attention kernels know these.
const LOGITS: [Toggle; 6] = [
    |choice| choice.dtype = DType::F16,
    |choice| choice.dtype = DType::BF16,
    |choice| choice.soft_cap = true,
    |choice| choice.modifier = Some(ModifierKind::Score),
    |choice| choice.modifier = Some(ModifierKind::Mask),
    |choice| choice.bits = true,
];

/// What only the forward kernel knows.
const RESULTS: [Toggle; 2] = [|choice| choice.sinks = true, |choice| choice.stats = true];

/// Nothing, each toggle, each pair of them, and all.
fn choices(toggles: &[Toggle]) -> Vec<Choice> {
    let mut found = vec![Choice::NOTHING];
    let mut add = |picked: &[Toggle]| {
        let mut choice = Choice::NOTHING;
        picked.iter().for_each(|toggle| toggle(&mut choice));
        if !found.contains(&choice) {
            found.push(choice);
        }
    };
    for (i, &first) in toggles.iter().enumerate() {
        for &second in &toggles[i..] {
            add(&[first, second]);
        }
    }
    add(toggles);
    found
}

/// Head sizes that kernels are compiled for, and some pairs of unlike ones.
fn dims(capabilities: &Capabilities) -> Vec<(usize, usize)> {
    let compiled = |dim| Variant::forward(dim, dim, capabilities).dim_qk as usize;
    let mut dims: Vec<_> = (1..=MAX_DIM).map(|dim| (compiled(dim), compiled(dim))).collect();
    dims.dedup();
    dims.extend([(64, 128), (192, 128), (16, 256), (256, 16), (96, 64)]);
    dims
}

/// The head size at which choices are paired.
const PAIRED: (usize, usize) = (64, 64);

fn attention(list: &mut List, capabilities: &Capabilities) {
    let modifiers = [
        Modifier::alibi(&attn_core::alibi_slopes(4)),
        Modifier::mask("near", "return f32(abs(position - key)) <= radius;")
            .with_scalar("radius", 3.0),
    ];
    let form = |choice: &Choice| Form {
        dtype: choice.dtype,
        soft_cap: choice.soft_cap,
        modifier: modifiers.iter().find(|modifier| Some(modifier.kind()) == choice.modifier),
        bits: choice.bits,
    };
    let mut add = |source, variant: Variant, choice: &Choice, flags: &[(&str, bool)]| {
        let constants = form(choice).constants(&variant);
        let constants =
            flags.iter().fold(constants, |constants, (flag, on)| constants.flag(flag, *on));
        list.add(source, constants, format!("{variant}{}", choice.words()));
    };
    let mut forward = |(dim_qk, dim_v), choice: &Choice| {
        let source = kernel!("attention_forward", SNIPPETS);
        let flags = [("SINKS", choice.sinks), ("STATS", choice.stats)];
        add(source, Variant::forward(dim_qk, dim_v, capabilities), choice, &flags);
    };
    let all: Vec<Toggle> = LOGITS.into_iter().chain(RESULTS).collect();
    dims(capabilities).into_iter().for_each(|dims| forward(dims, &Choice::NOTHING));
    choices(&all).iter().for_each(|choice| forward(PAIRED, choice));
    let mut decode = |(dim_qk, dim_v), rows, choice: &Choice| {
        let source = kernel!("attention_decode", SNIPPETS);
        add(source, Variant::decode(dim_qk, dim_v, rows, capabilities), choice, &[]);
    };
    for dims in dims(capabilities) {
        [1, 8].into_iter().for_each(|rows| decode(dims, rows, &Choice::NOTHING));
    }
    (1..=8).for_each(|rows| decode(PAIRED, rows, &Choice::NOTHING));
    choices(&LOGITS).iter().for_each(|choice| decode(PAIRED, 4, choice));

    let mut backward = |(dim_qk, dim_v), choice: &Choice| {
        let variant = Variant::backward(dim_qk, dim_v, capabilities);
        let (backward, by_keys) = (("BACKWARD", true), ("BY_KEYS", true));
        add(kernel!("attention_backward_q", SNIPPETS), variant, choice, &[backward]);
        add(kernel!("attention_backward_kv", SNIPPETS), variant, choice, &[backward, by_keys]);
        add(kernel!("attention_columns", SNIPPETS), variant, choice, &[by_keys]);
    };
    dims(capabilities).into_iter().for_each(|dims| backward(dims, &Choice::NOTHING));
    choices(&LOGITS).iter().for_each(|choice| backward(PAIRED, choice));

    let mut transposed = |(dim_qk, dim_v), choice: &Choice| {
        let variant = Variant::backward(dim_qk, dim_v, capabilities);
        add(kernel!("attention_transposed", SNIPPETS), variant, choice, &[("BY_KEYS", true)]);
    };
    for (dim, dim_v) in dims(capabilities) {
        // Few rows at once are what this kernel is mostly for.
        [dim_v, 16].into_iter().for_each(|width| transposed((dim, width), &Choice::NOTHING));
    }
    choices(&LOGITS).iter().for_each(|choice| transposed(PAIRED, choice));

    let mut weights = |dim, choice: &Choice| {
        let variant = Variant::backward(dim, dim, capabilities);
        let constants = blocked(form(choice).constants(&variant));
        let words = format!("{variant}{}", choice.words());
        list.add(kernel!("attention_weights", SNIPPETS), constants, words);
    };
    dims(capabilities).into_iter().for_each(|(dim, _)| weights(dim, &Choice::NOTHING));
    choices(&LOGITS).iter().for_each(|choice| weights(PAIRED.0, choice));

    if capabilities.max_loop_steps < usize::MAX {
        for choice in choices(&LOGITS) {
            let constants =
                form(&choice).constants(&Variant::forward(PAIRED.0, PAIRED.1, capabilities));
            let words = format!("slices of keys{}", choice.words());
            list.add(kernel!("attention_forward", SNIPPETS), sliced(constants), words);
        }
    }
}

/// Kernels whose invocations are independent.
fn small(list: &mut List, workgroup: u32) {
    let constants = || Constants::new().int("WORKGROUP", workgroup);
    let words = format!("workgroup {workgroup}");
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let words = format!("{words}, {}", dtype.name());
        for on in [false, true] {
            let (name, flag) = (kernel!("attention_delta", SNIPPETS), "LSE_COTANGENT");
            let variant = format!("{words}{}", if on { ", cotangent of the lse" } else { "" });
            list.add(name, storage(constants(), dtype).flag(flag, on), variant);
            for parts_f32 in [dtype == DType::F32, true] {
                let merge = storage(constants(), dtype).flag("PARTS_F32", parts_f32);
                let parts = if parts_f32 { ", f32 parts" } else { "" };
                let sinks = if on { ", sinks" } else { "" };
                let variant = format!("{words}{parts}{sinks}");
                list.add(kernel!("attention_merge", SNIPPETS), merge.flag("SINKS", on), variant);
            }
        }
    }
    list.add(kernel!("attention_sinks", SNIPPETS), constants(), words.clone());
    let items = || constants().int("ITEMS", 8);
    list.add(kernel!("fill", ops::SNIPPETS), items(), words.clone());
    list.add(kernel!("copy", ops::SNIPPETS), items(), words.clone());
    list.add(kernel!("copy_half", ops::SNIPPETS), items(), words.clone());
    for half in [false, true] {
        let words = format!("{words}{}", if half { ", halves" } else { "" });
        list.add(kernel!("copy_chunks", ops::SNIPPETS), ops::chunks_of(items(), half), words);
    }
    list.add(kernel!("probe_copy", ops::SNIPPETS), items(), words.clone());
    for chains in [3, 4] {
        let constants = constants().int("CHAINS", chains).int("STEPS", 60 / chains);
        list.add(
            kernel!("probe_fma", ops::SNIPPETS),
            constants,
            format!("{words}, {chains} chains"),
        );
    }
}

#[cfg(test)]
mod tests {
    use attn_core::Mask;
    use attn_core::dense::Config;
    use attn_core::plan::{Combine, Near, PlanShape, SparsePlan};

    use super::*;
    use crate::attention::{Attention, Cotangents, Inputs, Saved, Want};
    use crate::plan::{DevicePlan, PlanAttention};
    use crate::testing;
    use crate::{Gpu, Result, Tensor};

    /// Calls that need every kernel of attention, and some flags.
    fn calls(gpu: &Gpu) -> Result<()> {
        let tensor = |tokens, dim| Tensor::zeros(gpu, &[1, 2, tokens, dim], DType::F32);
        let sinks = Tensor::zeros(gpu, &[2], DType::F32)?;
        let plain = Attention::new(gpu, Config::new().with_mask(Mask::Causal))?;
        for queries in [1, 9] {
            let (q, k, v) = (tensor(queries, 16)?, tensor(9, 16)?, tensor(9, 16)?);
            let inputs = Inputs::new(&q, &k, &v);
            plain.forward_with(inputs, Want::nothing().with_column_sums())?;
            let output = plain.forward(inputs)?;
            plain.weights(inputs, &output.lse)?;
            plain.transposed(&q, &k, &output.lse, &output.out)?;
            let saved = Saved::new(inputs.with_sinks(&sinks), &output.out, &output.lse);
            let cotangents = Cotangents { out: &output.out, lse: Some(&output.lse) };
            plain.backward(&saved, cotangents)?;
        }
        let (q, k, v) = (tensor(9, PAIRED.0)?, tensor(9, PAIRED.0)?, tensor(9, PAIRED.1)?);
        let capped = Attention::new(gpu, Config::new().with_soft_cap(20.0))?;
        capped.forward(Inputs::new(&q, &k, &v).with_sinks(&sinks))?;
        plans(gpu)?;
        let half = Tensor::from_slice(gpu, &[half::f16::ONE; 8], &[2, 4])?;
        half.narrow(1, 0, 2)?.contiguous()?;
        Ok(())
    }

    /// Sparse plans with few rows and many, of one part and of two.
    fn plans(gpu: &Gpu) -> Result<()> {
        for queries in [1, 200] {
            let tensor = |dim| Tensor::zeros(gpu, &[1, 2, queries, dim], DType::F32);
            let (q, k, v) = (tensor(PAIRED.0)?, tensor(PAIRED.0)?, tensor(PAIRED.1)?);
            let shape = PlanShape::new(1, 2, 2, queries, queries);
            let near = Near { sink: 1, window: 4, grow: false };
            let full = SparsePlan::full(shape, true, 1000)?.to_bits(4, 0)?.with_near(near);
            let full = full.canonicalise()?;
            let mut mean = full.clone().with_combine(Combine::Mean);
            mean.parts.push(full.to_tokens()?.parts.swap_remove(0));
            let attention = PlanAttention::new(gpu, Config::new().with_mask(Mask::Causal))?;
            for plan in [full, mean] {
                let plan = DevicePlan::upload(gpu, &plan)?;
                let (output, saved) = attention.forward_saved(Inputs::new(&q, &k, &v), &plan)?;
                attention.backward(&saved, Cotangents { out: &output.out, lse: None })?;
            }
        }
        Ok(())
    }

    /// The names of kernels with their constants, as a device runs them and as they are listed.
    #[test]
    fn what_runs_is_listed() {
        let Some(gpu) = testing::open() else { return };
        let ((), profile) = gpu.profile(|| calls(&gpu)).unwrap();
        let ran: HashSet<String> = profile.kernels.into_iter().map(|time| time.kernel).collect();
        let named = |name: &str| ran.iter().filter(|label| label.starts_with(name)).count();
        let kernels = [
            "forward",
            "decode",
            "backward_q",
            "backward_kv",
            "columns",
            "transposed",
            "weights",
            "merge",
            "delta",
            "sinks",
            "plan",
            "plan_merge",
            "plan_q",
            "plan_kv",
            "plan_keys",
            "plan_stats",
        ];
        for name in kernels {
            assert!(named(&format!("attention_{name} ")) > 0, "{name}: {ran:?}");
        }
        let label = |entry: Entry| {
            let kernel = gpu.kernel(&entry.source, entry.constants).unwrap();
            kernel.label().to_string()
        };
        let listed: HashSet<String> = entries(gpu.capabilities()).into_iter().map(label).collect();
        for label in ran {
            assert!(listed.contains(&label), "{label} runs and is not listed");
        }
    }

    #[test]
    fn choices_are_pairs_and_all() {
        let found = choices(&LOGITS);
        // Nothing, 6 alone, 15 pairs of which 2 exclude each other, all.
        assert_eq!(found.len(), 1 + 6 + 13 + 1);
        let all = found[found.len() - 1];
        assert!(all.soft_cap && all.bits && all.modifier.is_some() && !all.sinks);
    }
}
