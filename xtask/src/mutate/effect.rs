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
    /// The same without `#unroll`, and what the loader makes of it.
    short: KernelSource,
    short_text: String,
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
                let short = rewritten(&entry.source, &|_, text| without_unroll(text));
                let short_text = expanded(&short, &entry, setting).map_err(|e| anyhow!(e))?;
                known.push(Known { setting, entry, short, short_text });
            }
        }
        Ok(Self(known))
    }

    /// Compares and compiles. Loops stay loops where a variant is only checked for types, since unrolled texts are
    /// many times longer; of each kernel one text is compiled as the loader makes it.
    pub fn effect(&self, mutant: &Mutant) -> Effect {
        let mut settings = Vec::new();
        let mut in_full: Vec<(Setting, &str)> = Vec::new();
        let short = without_unroll(&mutant.text).leak();
        let full: &'static str = mutant.text.clone().leak();
        for known in &self.0 {
            let source = &known.entry.source;
            let uses = source.name == mutant.file
                || source.imports.iter().any(|(name, _)| *name == mutant.file);
            if !uses {
                continue;
            }
            let replace = |source, text: &'static str| {
                rewritten(source, &|name, old| {
                    if name == mutant.file { text.into() } else { old.into() }
                })
            };
            let text = expanded(&replace(&known.short, short), &known.entry, known.setting);
            let mut outcome = match text {
                Ok(text) if text == known.short_text => continue,
                Ok(text) => valid(&text),
                Err(message) => Err(message),
            };
            if outcome.is_ok() && !in_full.contains(&(known.setting, source.name)) {
                in_full.push((known.setting, source.name));
                let text = expanded(&replace(source, full), &known.entry, known.setting);
                outcome = text.and_then(|text| valid(&text));
            }
            if let Err(message) = outcome {
                return Effect::Invalid(message);
            }
            if !settings.contains(&known.setting) {
                settings.push(known.setting);
            }
        }
        match settings[..] {
            [] => Effect::Invalid("no text of the tests' devices changes".into()),
            _ => Effect::Changes(settings),
        }
    }
}

/// The source with other texts. The loader takes texts that live for ever; a run leaks some megabytes.
fn rewritten(source: &KernelSource, text: &dyn Fn(&str, &'static str) -> String) -> KernelSource {
    let keep = |name: &str, old: &'static str| -> &'static str {
        let new = text(name, old);
        if new == old { old } else { new.leak() }
    };
    let imports = source.imports.iter().map(|&(name, old)| (name, keep(name, old)));
    KernelSource {
        name: source.name,
        text: keep(source.name, source.text),
        imports: imports.collect::<Vec<_>>().leak(),
    }
}

fn without_unroll(text: &str) -> String {
    let line = |line| if str::trim(line) == "#unroll" { "" } else { line };
    text.lines().map(line).flat_map(|line| [line, "\n"]).collect()
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
