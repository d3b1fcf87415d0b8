//! Does a mutant compile, and which device would notice? Decided by naga, without a device.

use anyhow::{Context, Result, anyhow};
use attn_wgpu::catalogue::{self, Entry};
use attn_wgpu::{KernelSource, expand};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::mutants::Mutant;

/// How the tests' device is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// Subgroups of 8 lanes, immediates.
    Usual,
    /// No optional feature, WebGPU's default limits.
    Plain,
}

impl Setting {
    pub const ALL: [Setting; 2] = [Setting::Usual, Setting::Plain];

    pub fn name(self) -> &'static str {
        match self {
            Setting::Usual => "usual",
            Setting::Plain => "plain",
        }
    }

    /// The name of such a device in the catalogue.
    fn device(self) -> &'static str {
        match self {
            Setting::Usual => "software, 8 lanes",
            Setting::Plain => "software, WebGPU limits",
        }
    }

    /// Variables that set a device so.
    pub fn env(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Setting::Usual => &[],
            Setting::Plain => {
                &[("ATTN_DISABLE", "subgroup,f16,immediates,timestamps"), ("ATTN_LIMITS", "webgpu")]
            }
        }
    }
}

/// What a mutant does to the texts that a device gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is not counted: the reason.
    Invalid(String),
    /// The settings under which some text is another.
    Changes(Vec<Setting>),
}

/// A kernel of the catalogue with its text.
struct Known {
    setting: Setting,
    entry: Entry,
    text: String,
}

/// The kernels whose texts are compared.
pub struct Texts(Vec<Known>);

impl Texts {
    /// The catalogue's variants for the tests' devices, at one head size: other sizes differ in constants only.
    pub fn load() -> Result<Self> {
        let mut known = Vec::new();
        for setting in Setting::ALL {
            let devices = catalogue::devices();
            let device = devices.into_iter().find(|(name, _)| *name == setting.device());
            let (_, capabilities) = device.context("a device of the catalogue has another name")?;
            let wanted = |entry: &Entry| {
                let variant = &entry.variant;
                !variant.contains("dims ") || variant.contains("dims 64/64,")
            };
            for entry in catalogue::entries(&capabilities).into_iter().filter(wanted) {
                let text = expanded(&entry.source, &entry, setting).map_err(|e| anyhow!(e))?;
                known.push(Known { setting, entry, text });
            }
        }
        Ok(Self(known))
    }

    /// Compares all texts, and compiles the first of each kernel that changes.
    pub fn effect(&self, mutant: &Mutant) -> Effect {
        let mut settings = Vec::new();
        let mut compiled: Vec<(Setting, &str)> = Vec::new();
        let new: &'static str = mutant.text.clone().leak();
        for Known { setting, entry, text: old } in &self.0 {
            let source = &entry.source;
            let uses = source.name == mutant.file
                || source.imports.iter().any(|(name, _)| *name == mutant.file);
            if !uses || compiled.contains(&(*setting, source.name)) {
                continue;
            }
            let text = expanded(&with_text(source, &mutant.file, new), entry, *setting);
            match text {
                Ok(text) if text == *old => continue,
                text => {
                    if let Err(reason) = text.and_then(|text| valid(&text)) {
                        return Effect::Invalid(reason);
                    }
                }
            }
            compiled.push((*setting, source.name));
            if !settings.contains(setting) {
                settings.push(*setting);
            }
        }
        match settings[..] {
            [] => Effect::Invalid("no text of the tests' devices changes".into()),
            _ => Effect::Changes(settings),
        }
    }
}

/// The source with another text for one file. The loader takes texts that live for ever; a run leaks some megabytes.
fn with_text(source: &KernelSource, file: &str, new: &'static str) -> KernelSource {
    if source.name == file {
        return KernelSource { text: new, ..*source };
    }
    let one =
        |&(name, old): &(&'static str, &'static str)| (name, if name == file { new } else { old });
    let imports: Vec<_> = source.imports.iter().map(one).collect();
    KernelSource { imports: imports.leak(), ..*source }
}

fn expanded(source: &KernelSource, entry: &Entry, setting: Setting) -> Result<String, String> {
    expand(source, &entry.constants, setting == Setting::Usual)
}

fn valid(text: &str) -> Result<(), String> {
    let first_line = |message: String| message.lines().next().unwrap_or_default().to_string();
    let module = naga::front::wgsl::parse_str(text)
        .map_err(|error| first_line(error.emit_to_string(text)))?;
    let capabilities =
        Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::SUBGROUP;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    match validator.validate(&module) {
        Ok(_) => Ok(()),
        Err(error) => Err(first_line(error.emit_to_string(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(texts: &Texts, file: &str, before: &str, after: &str) -> Mutant {
        let sources = texts.0.iter().map(|known| known.entry.source);
        let of = |source: KernelSource| {
            let own = (source.name == file).then_some(source.text);
            own.or(source.imports.iter().find(|(name, _)| *name == file).map(|(_, text)| *text))
        };
        let text = sources.into_iter().find_map(of).unwrap();
        assert!(text.contains(before), "{before}");
        Mutant {
            file: file.into(),
            line: 1,
            mutator: "",
            id: String::new(),
            before: String::new(),
            after: String::new(),
            occurrence: 1,
            text: text.replacen(before, after, 1),
        }
    }

    #[test]
    fn effects_by_setting() {
        let texts = Texts::load().unwrap();
        let effect = |file, before, after| texts.effect(&mutant(&texts, file, before, after));
        use Setting::{Plain, Usual};
        assert_eq!(
            effect("attention_lanes", "(*sums)[i] = sum;", ""),
            Effect::Changes(vec![Plain])
        );
        assert_eq!(
            effect("attention_lanes", "1u << step", "2u << step"),
            Effect::Changes(vec![Usual])
        );
        assert_eq!(
            effect("linear", "counts.x *", "counts.x +"),
            Effect::Changes(vec![Usual, Plain])
        );
        for (before, after) in [("counts.x *", "counts.x &&"), ("group.x", "group.q")] {
            assert!(matches!(effect("linear", before, after), Effect::Invalid(_)));
        }
        assert_eq!(
            effect("linear", "// Linear", "// linear number in comments is code"),
            Effect::Changes(vec![Usual, Plain])
        );
        assert!(matches!(
            effect("attention_forward", "#ifdef MODIFIER\n", "#ifdef MODIFIER\n\n"),
            Effect::Changes(_)
        ));
        assert!(matches!(effect("fill", "struct Params", "struct Params"), Effect::Invalid(_)));
    }
}
