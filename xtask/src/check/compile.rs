//! naga: parse, validate, and translate for the three kinds of drivers, with wgpu's own settings.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess};

/// What a text needs of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub workgroup_bytes: u32,
    pub storage_buffers: u32,
    pub invocations: u32,
    pub params_bytes: u32,
}

/// Compiles one text.
///
/// 64-bit floats and atomics on floats are refused, since no capability for them is granted.
pub fn compile(text: &str, subgroups: bool) -> Result<Facts, String> {
    // Some texts that the validator accepts make a writer panic.
    let outcome = catch_unwind(AssertUnwindSafe(|| translate_all(text, subgroups)));
    outcome.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("naga panicked: {words}"))
    })
}

fn translate_all(text: &str, subgroups: bool) -> Result<Facts, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|error| error.emit_to_string(text))?;
    // Half values packed in words: part of WebGPU, other than f16 itself.
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    let validate = |module: &Module| {
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        validator
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all());
        validator.validate(module).map_err(|error| error.emit_to_string(text))
    };
    let facts = facts(&module)?;
    translate(&module, &validate(&module)?)?;
    // Where tensors share a buffer with an output, the loader binds all of them as writable.
    let twin = twin(&module);
    translate(&twin, &validate(&twin)?)
        .map_err(|error| format!("all bindings writable: {error}"))?;
    Ok(facts)
}

fn twin(module: &Module) -> Module {
    let mut twin = module.clone();
    for (_, variable) in twin.global_variables.iter_mut() {
        if let AddressSpace::Storage { access } = &mut variable.space {
            *access |= StorageAccess::STORE;
        }
    }
    twin
}

fn translate(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let checked = BoundsCheckPolicies {
        index: BoundsCheckPolicy::Restrict,
        buffer: BoundsCheckPolicy::Restrict,
        image_load: BoundsCheckPolicy::Restrict,
        binding_array: BoundsCheckPolicy::Unchecked,
    };
    let options = spv::Options {
        // Subgroup operations came with 1.3.
        lang_version: (1, 3),
        bounds_check_policies: checked,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..spv::Options::default()
    };
    spv::write_vec(module, info, &options, None).map_err(|error| format!("SPIR-V: {error}"))?;

    let resources = msl::EntryPointResources {
        immediates_buffer: Some(29),
        sizes_buffer: Some(30),
        ..msl::EntryPointResources::default()
    };
    let per_entry_point =
        module.entry_points.iter().map(|entry| (entry.name.clone(), resources.clone()));
    let options = msl::Options {
        lang_version: (2, 4),
        per_entry_point_map: per_entry_point.collect::<BTreeMap<_, _>>(),
        bounds_check_policies: checked,
        zero_initialize_workgroup_memory: false,
        ..msl::Options::default()
    };
    msl::write_string(module, info, &options, &msl::PipelineOptions::default())
        .map_err(|error| format!("MSL: {error}"))?;

    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_4,
        immediates_target: Some(hlsl::BindTarget { space: 7, ..hlsl::BindTarget::default() }),
        zero_initialize_workgroup_memory: false,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions::default();
    let mut output = String::new();
    let written = hlsl::Writer::new(&mut output, &options, &pipeline).write(module, info, None);
    let reflection = written.map_err(|error| format!("HLSL: {error}"))?;
    for name in reflection.entry_point_names {
        name.map_err(|error| format!("HLSL: {error}"))?;
    }
    Ok(())
}

fn facts(module: &Module) -> Result<Facts, String> {
    let [entry] = module.entry_points.as_slice() else {
        return Err(format!(
            "{} entry points, where the loader needs one",
            module.entry_points.len()
        ));
    };
    let mut facts =
        Facts { invocations: entry.workgroup_size.iter().product(), ..Facts::default() };
    for (_, variable) in module.global_variables.iter() {
        let bytes = || module.types[variable.ty].inner.size(module.to_ctx());
        match variable.space {
            // As the loader counts: drivers may align each variable.
            AddressSpace::WorkGroup => facts.workgroup_bytes += bytes().next_multiple_of(16),
            AddressSpace::Storage { .. } => facts.storage_buffers += 1,
            AddressSpace::Uniform | AddressSpace::Immediate => facts.params_bytes += bytes(),
            _ => {}
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
struct Params { count: u32, factor: f32 }
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read_write> b: array<f32>;
var<workgroup> shared_a: array<f32, 64>;
var<workgroup> shared_b: f32;
@compute @workgroup_size(32, 2)
fn main(@builtin(local_invocation_index) i: u32) {
  shared_a[i] = a[i] * params.factor;
  workgroupBarrier();
  if i < params.count { b[i] = shared_a[63u - i] + shared_b; }
}
";

    #[test]
    fn facts_are_counted() {
        let facts = compile(GOOD, false).unwrap();
        let want = Facts {
            workgroup_bytes: 256 + 16,
            storage_buffers: 2,
            invocations: 64,
            params_bytes: 8,
        };
        assert_eq!(facts, want);
        let uniform = "@group(1) @binding(0) var<uniform> params: Params;";
        assert_eq!(
            compile(&GOOD.replace("var<immediate> params: Params;", uniform), false),
            Ok(want)
        );
    }

    fn refused(declarations: &str, body: &str) -> String {
        let text = format!(
            "{declarations}\n@compute @workgroup_size(4)\n\
             fn main(@builtin(local_invocation_index) i: u32) {{ {body} }}"
        );
        compile(&text, false).unwrap_err()
    }

    #[test]
    fn what_the_house_does_without_is_refused() {
        assert!(refused("var<private> x: f64;", "x = 1.0lf;").contains("f64"));
        let atomic = "@group(0) @binding(0) var<storage, read_write> x: atomic<f32>;";
        assert!(!refused(atomic, "atomicAdd(&x, 1.0);").is_empty());
        assert!(!refused("enable f16;", "var x = 1.0h;").is_empty());
        assert!(refused("", "let x = subgroupAdd(i);").contains("ubgroup"));
        assert!(
            refused("fn f() {}\n@compute @workgroup_size(1) fn g() {}", "").contains("2 entry")
        );
    }

    #[test]
    fn subgroups_are_granted_where_the_device_has_them() {
        let text = "@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(32)
fn main(@builtin(subgroup_id) s: u32, @builtin(subgroup_invocation_id) i: u32) {
  x[s + i] = subgroupShuffleXor(x[i], 1u);
}";
        assert!(compile(text, true).is_ok());
        assert!(compile(text, false).is_err());
    }
}
