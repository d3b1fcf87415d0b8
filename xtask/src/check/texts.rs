//! The texts to check: what the loader makes of every variant in the catalogues.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, anyhow};
use attn_wgpu::catalogue::{self, Entry};
use attn_wgpu::{Capabilities, expand};

/// The kernels of one crate for a device.
type Catalogue = fn(&Capabilities) -> Vec<Entry>;

/// One line a crate that has kernels.
const CATALOGUES: &[Catalogue] = &[
    catalogue::entries,
    attn_aaren::kernels,
    attn_blockrank::kernels,
    attn_dare::kernels,
    attn_flexprefill::kernels,
    attn_flowformer::kernels,
    attn_lightning::kernels,
    attn_routing::kernels,
    attn_titans::kernels,
    attn_vlsam::kernels,
];

/// What all devices that get a text have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub subgroups: bool,
    pub threads: u32,
    pub workgroup_bytes: u32,
}

impl Device {
    fn of(capabilities: &Capabilities) -> Self {
        Self {
            subgroups: capabilities.subgroups.is_some(),
            threads: capabilities.max_workgroup_threads,
            workgroup_bytes: capabilities.max_workgroup_bytes,
        }
    }

    /// The least of both.
    fn and(self, other: Self) -> Self {
        Self {
            subgroups: self.subgroups && other.subgroups,
            threads: self.threads.min(other.threads),
            workgroup_bytes: self.workgroup_bytes.min(other.workgroup_bytes),
        }
    }
}

/// One expanded kernel.
#[derive(Clone, Debug)]
pub struct Text {
    pub kernel: &'static str,
    /// The first device that gets it, by name.
    pub device_name: &'static str,
    pub variant: String,
    pub device: Device,
    /// Parameters are immediate data; else they are in a uniform buffer.
    pub immediate: bool,
    pub text: String,
}

impl Text {
    /// Kernel and variant, for messages.
    pub fn name(&self) -> String {
        let form = if self.immediate { ", immediates" } else { "" };
        format!("{} ({}, {}{form})", self.kernel, self.device_name, self.variant)
    }

    #[cfg(test)]
    pub fn sample(kernel: &'static str, variant: &str, text: &str) -> Self {
        let device = Device { subgroups: false, threads: 256, workgroup_bytes: 16 << 10 };
        Self {
            kernel,
            device_name: "some device",
            variant: variant.into(),
            device,
            immediate: false,
            text: text.into(),
        }
    }
}

/// Every text once, in the order of devices and catalogues.
pub fn all() -> Result<Vec<Text>> {
    let mut texts: Vec<Text> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (device_name, capabilities) in catalogue::devices() {
        let device = Device::of(&capabilities);
        // A device with immediates gets the other form too: for large parameters, or on request.
        let forms = if capabilities.immediate_bytes > 0 { &[true, false][..] } else { &[false] };
        for entry in CATALOGUES.iter().flat_map(|entries| entries(&capabilities)) {
            for &immediate in forms {
                let kernel = entry.source.name;
                let text = expand(&entry.source, &entry.constants, immediate)
                    .map_err(|error| anyhow!("{kernel} ({}): {error}", entry.variant))?;
                if let Some(&index) = known.get(&text) {
                    texts[index].device = texts[index].device.and(device);
                    continue;
                }
                known.insert(text.clone(), texts.len());
                let variant = entry.variant.clone();
                texts.push(Text { kernel, device_name, variant, device, immediate, text });
            }
        }
    }
    Ok(texts)
}

/// How many there are of what.
pub fn summary(texts: &[Text]) -> String {
    let kernels: BTreeSet<_> = texts.iter().map(|text| text.kernel).collect();
    let variants: BTreeSet<_> =
        texts.iter().map(|text| (text.kernel, text.device_name, &text.variant)).collect();
    let devices = catalogue::devices().len();
    let bytes: usize = texts.iter().map(|text| text.text.len()).sum();
    format!(
        "{} kernels, {} variants for {devices} kinds of devices, {} texts ({} MB)",
        kernels.len(),
        variants.len(),
        texts.len(),
        bytes >> 20
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_and_cover_what_varies() {
        let texts = all().unwrap();
        let distinct: BTreeSet<_> = texts.iter().map(|text| &text.text).collect();
        assert_eq!(distinct.len(), texts.len());
        let of = |kernel: &str, part: &str| {
            texts.iter().filter(|t| t.kernel == kernel && t.name().contains(part)).count()
        };
        // Devices may share texts, but no kernel of any is left out. Only linear attention has kernels that
        // not every device gets.
        let every: BTreeSet<_> = texts.iter().map(|text| text.kernel).collect();
        for (name, capabilities) in catalogue::devices() {
            let entries: Vec<Entry> =
                CATALOGUES.iter().flat_map(|catalogue| catalogue(&capabilities)).collect();
            let kernels: BTreeSet<_> = entries.iter().map(|entry| entry.source.name).collect();
            assert!(kernels.is_subset(&every), "{name}");
            let others = every.difference(&kernels);
            let others: Vec<_> = others.filter(|kernel| !kernel.starts_with("chunk_")).collect();
            assert!(others.is_empty(), "{name}: {others:?}");
        }
        for dim in [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256] {
            for kernel in ["forward", "decode", "backward_q", "backward_kv", "columns", "weights"] {
                let found = of(&format!("attention_{kernel}"), &format!("dims {dim}/{dim},"));
                assert!(found >= 4, "{kernel} {dim}: {found}");
            }
        }
        for words in
            ["f16, sinks", "bf16, row maxima", "soft cap, mask modifier", "bit mask, sinks"]
        {
            assert!(of("attention_forward", words) > 0, "{words}");
        }
        let texts = |immediate| texts.iter().filter(|t| t.immediate == immediate).count();
        assert!(texts(true) > 0 && texts(false) > texts(true));
    }

    #[test]
    fn a_text_must_suit_its_least_device() {
        let large = Device { subgroups: true, threads: 1024, workgroup_bytes: 32 << 10 };
        let small = Device { subgroups: false, threads: 256, workgroup_bytes: 16 << 10 };
        assert_eq!(large.and(small), small);
        assert_eq!(small.and(large), small);
    }
}
