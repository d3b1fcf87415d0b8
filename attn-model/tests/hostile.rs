//! Damaged and hostile files: an error or a sound model, never a panic, a hang, or memory that the file does
//! not account for.

mod common;

use std::alloc::System;
use std::collections::BTreeMap;
use std::path::PathBuf;

use attn_core::testing::uniform;
use attn_model::gguf::Gguf;
use attn_model::{Blob, DType, Error, ModelConfig, Source, Tokenizer, Weights};
use cap::Cap;
use common::{data, scratch, write};

/// All tests of this file together. An allocation beyond ends the process.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, 96 << 20);

/// Reads all there is, whatever it is.
fn use_gguf(bytes: &[u8]) -> Result<(), Error> {
    let gguf = Gguf::read(Blob::from_bytes("hostile", bytes))?;
    let config = ModelConfig::from_gguf(&gguf)?;
    read_all(&Weights::from_gguf(&gguf, &config)?)
}

fn use_safetensors(bytes: &[u8]) -> Result<(), Error> {
    read_all(&Weights::from_safetensors(&[Blob::from_bytes("hostile", bytes)])?)
}

fn read_all(weights: &Weights) -> Result<(), Error> {
    let names: Vec<_> = weights.names().map(String::from).collect();
    for name in names {
        let shape = weights.shape(&name)?.to_vec();
        weights.tensor(&name, &shape, DType::F16)?;
    }
    Ok(())
}

fn use_config(bytes: &[u8]) -> Result<(), Error> {
    let config = ModelConfig::from_json("hostile", bytes)?;
    // What was accepted has finite arithmetic, and can be listed without much memory.
    assert!(config.scale.is_finite() && config.tensors().len() < 100_000);
    for layer in config.layers.iter().take(8) {
        assert!(layer.rope.frequencies(config.head_dim).iter().all(|f| f.is_finite()));
        assert!(layer.rope.attention_factor().is_finite());
    }
    let _ = config.to_json(DType::F32);
    Ok(())
}

fn use_tokenizer_config(bytes: &[u8]) -> Result<(), Error> {
    let json = std::fs::read(data("models/tiny-llama/tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&json)?.with_config_json("hostile", bytes)?;
    tokenizer.chat(&[attn_model::Message::new("user", "x")], true)?;
    Ok(())
}

fn mixed() -> Vec<u8> {
    std::fs::read(data("gguf/tiny-llama-mixed.gguf")).unwrap()
}

/// Bytes in front of a GGUF file's data.
fn header_len(bytes: &[u8]) -> usize {
    let name = b"blk.1.ffn_down.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    at + name.len() + 4 + 2 * 8 + 4 + 8
}

/// Copies with some bytes changed, by a counter.
fn flipped(bytes: &[u8], region: usize, count: u64, mut check: impl FnMut(&[u8])) {
    let mut copy = bytes.to_vec();
    for case in 0..count {
        let draw = |i: u64| uniform(7, case, i);
        let changes = 1 + (draw(0) * 4.0) as u64;
        let mut places = Vec::new();
        for change in 0..changes {
            let at = (draw(1 + 3 * change) * region as f64) as usize;
            places.push(at);
            // A flipped bit, or an extreme byte.
            copy[at] = match (draw(2 + 3 * change) * 4.0) as u8 {
                0 => 0xFF,
                1 => 0,
                _ => copy[at] ^ (1 << (draw(3 + 3 * change) * 8.0) as u8),
            };
        }
        check(&copy);
        places.iter().for_each(|at| copy[*at] = bytes[*at]);
    }
}

#[test]
fn gguf_cut_anywhere() {
    let bytes = mixed();
    use_gguf(&bytes).unwrap();
    let header = header_len(&bytes);
    for len in 0..header {
        let error = use_gguf(&bytes[..len]).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{len}: {error}");
    }
    for len in (header..bytes.len()).step_by(997) {
        let error = use_gguf(&bytes[..len]).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{len}: {error}");
    }
}

#[test]
fn gguf_with_flipped_bits() {
    let bytes = mixed();
    let header = header_len(&bytes);
    let mut refused = 0;
    flipped(&bytes, header, 4000, |copy| refused += u32::from(use_gguf(copy).is_err()));
    assert!(refused > 400, "{refused} of 4000");
}

#[test]
fn safetensors_cut_anywhere_and_flipped() {
    let bytes = std::fs::read(data("models/tiny-llama-tied/model.safetensors")).unwrap();
    use_safetensors(&bytes).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for len in 0..header + 8 {
        let error = use_safetensors(&bytes[..len]).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{len}: {error}");
    }
    let mut refused = 0;
    flipped(&bytes, header, 4000, |copy| refused += u32::from(use_safetensors(copy).is_err()));
    assert!(refused > 1000, "{refused} of 4000");
}

#[test]
fn configurations_cut_anywhere_and_flipped() {
    for name in ["tiny-llama-tied", "tiny-gemma3", "tiny-qwen2", "tiny-mistral"] {
        let bytes = std::fs::read(data(&format!("models/{name}/config.json"))).unwrap();
        let bytes = bytes.trim_ascii_end();
        use_config(bytes).unwrap();
        for len in 0..bytes.len() {
            assert!(use_config(&bytes[..len]).is_err());
        }
        flipped(bytes, bytes.len(), 3000, |copy| drop(use_config(copy)));
    }
    let bytes = std::fs::read(data("models/tiny-llama/tokenizer_config.json")).unwrap();
    use_tokenizer_config(&bytes).unwrap();
    flipped(&bytes, bytes.len(), 500, |copy| drop(use_tokenizer_config(copy)));
}

/// Each number of a configuration in turn becomes something absurd.
#[test]
fn absurd_numbers() {
    let values = [
        "0",
        "-1",
        "1.5",
        "1e300",
        "1e999",
        "18446744073709551615",
        "4611686018427387904",
        "null",
        "\"64\"",
        "[]",
        "{}",
        "true",
        "3",
        "1e-300",
        "-0.0",
        "[1, 2]",
        "2147483648",
    ];
    for folder in common::model_folders().iter().take(7) {
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let json: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        for key in json.keys() {
            for value in values {
                // As text, since not every number here is one for the JSON library.
                let mut parts: Vec<String> = json
                    .iter()
                    .filter(|(name, _)| *name != key)
                    .map(|(name, value)| format!("{name:?}: {value}"))
                    .collect();
                parts.push(format!("{key:?}: {value}"));
                let result = use_config(format!("{{{}}}", parts.join(", ")).as_bytes());
                let needed =
                    ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"];
                if needed.contains(&key.as_str()) && value != "3" && value != "2147483648" {
                    assert!(result.is_err(), "{key} {value}");
                }
            }
        }
    }
}

/// A file, and a part of the message that it must lead to.
type Case = (&'static str, Vec<u8>, &'static str);

fn gguf_cases() -> Vec<Case> {
    let sound = || {
        let mut gguf = write::Gguf::default();
        gguf.string("general.architecture", "llama");
        gguf
    };
    let with = |edit: &dyn Fn(&mut write::Gguf)| {
        let mut gguf = sound();
        edit(&mut gguf);
        gguf.bytes()
    };
    let huge = u64::MAX.to_le_bytes();
    let list = |kind: u32, count: u64, rest: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), rest].concat()
    };
    let entry = |dims: &'static [u64], kind: u32, offset: u64| {
        with(&move |g| {
            g.entry("token_embd.weight", dims, kind, offset);
            g.data.resize(64, 0);
        })
    };
    vec![
        ("empty", vec![], "magic"),
        ("other-magic", b"GGML\x03\0\0\0".to_vec(), "the magic"),
        ("version-1", [&b"GGUF\x01\0\0\0"[..], &[0; 16]].concat(), "version 1 is not supported"),
        ("big-endian", [&b"GGUF\0\0\0\x03"[..], &[0; 16]].concat(), "version 50331648"),
        ("tensors-2-60", sound().with_counts(1 << 60, 1), "number of tensors"),
        ("tensors-max", sound().with_counts(u64::MAX, 1), "number of tensors"),
        ("keys-2-60", sound().with_counts(0, 1 << 60), "number of keys"),
        ("one-key-too-many", sound().with_counts(0, 2), "a key at byte"),
        (
            "key-of-2-64",
            [&b"GGUF\x03\0\0\0"[..], &[0; 8], &[1, 0, 0, 0, 0, 0, 0, 0], &huge, &[0; 32]].concat(),
            "a key at byte",
        ),
        (
            "text-of-2-64",
            with(&|g| {
                g.raw("k", 8, &huge);
            }),
            "k at byte",
        ),
        (
            "text-of-2-63",
            with(&|g| {
                g.raw("k", 8, &(1u64 << 63).to_le_bytes());
            }),
            "k at byte",
        ),
        (
            "list-of-2-60-bytes",
            with(&|g| {
                g.raw("k", 9, &list(0, 1 << 60, &[]));
            }),
            "k at byte",
        ),
        (
            "list-of-2-61-f64",
            with(&|g| {
                g.raw("k", 9, &list(12, (1 << 61) + 1, &[]));
            }),
            "k at byte",
        ),
        (
            "list-of-2-60-texts",
            with(&|g| {
                g.raw("k", 9, &list(8, 1 << 60, &[]));
            }),
            "k at byte",
        ),
        (
            "list-of-lists",
            with(&|g| {
                g.raw("k", 9, &list(9, 1, &[0; 64]));
            }),
            "array of arrays",
        ),
        (
            "list-of-what",
            with(&|g| {
                g.raw("k", 9, &list(77, 1, &[0; 64]));
            }),
            "element type",
        ),
        (
            "value-of-what",
            with(&|g| {
                g.raw("k", 99, &[0; 64]);
            }),
            "value type",
        ),
        (
            "key-twice",
            with(&|g| {
                g.u32("k", 1).u32("k", 1);
            }),
            "it twice",
        ),
        (
            "key-not-utf8",
            with(&|g| {
                g.keys.push([&write::text(b"\xFF\xFE")[..], &[4, 0, 0, 0, 1, 0, 0, 0]].concat());
            }),
            "UTF-8",
        ),
        (
            "text-not-utf8",
            with(&|g| {
                g.raw("k", 8, &write::text(b"a\xC0b"));
            }),
            "UTF-8",
        ),
        (
            "alignment-0",
            with(&|g| {
                g.u32("general.alignment", 0);
            }),
            "power of two",
        ),
        (
            "alignment-3",
            with(&|g| {
                g.u32("general.alignment", 3);
            }),
            "power of two",
        ),
        (
            "alignment-2-31",
            with(&|g| {
                g.u32("general.alignment", 1 << 31);
            }),
            "power of two",
        ),
        (
            "alignment-text",
            with(&|g| {
                g.string("general.alignment", "32");
            }),
            "power of two",
        ),
        ("dims-0", entry(&[], 0, 0), "1 to 4 dims"),
        ("dims-5", entry(&[1, 1, 1, 1, 1], 0, 0), "1 to 4 dims"),
        ("extent-0", entry(&[0, 4], 0, 0), "extents above 0"),
        ("extents-overflow", entry(&[1 << 32, 1 << 32], 0, 0), "product"),
        ("extents-wrap-to-1", entry(&[u64::MAX, u64::MAX], 0, 0), "product"),
        ("bytes-overflow", entry(&[1 << 62], 0, 0), "product"),
        ("more-than-the-file", entry(&[17], 0, 0), "behind the header"),
        ("offset-outside", entry(&[16], 0, 32), "behind the header"),
        ("offset-max", entry(&[8], 0, u64::MAX - 31), "behind the header"),
        ("offset-odd", entry(&[8], 0, 4), "multiple of 32"),
        ("half-a-block", entry(&[48], 2, 0), "whole blocks"),
        (
            "tensor-twice",
            with(&|g| {
                g.entry("a", &[1], 0, 0).entry("a", &[1], 0, 32).data.resize(64, 0);
            }),
            "it twice",
        ),
        (
            "overlap",
            with(&|g| {
                g.entry("a", &[16], 0, 0).entry("b", &[8], 0, 32).data.resize(64, 0);
            }),
            "overlap",
        ),
        ("no-architecture", write::Gguf::default().bytes(), "general.architecture"),
        (
            "other-architecture",
            write::Gguf::default().string("general.architecture", "mamba").bytes(),
            "mamba is not supported",
        ),
        (
            "architecture-number",
            write::Gguf::default().u32("general.architecture", 7).bytes(),
            "expected text",
        ),
        ("no-keys", sound().bytes(), "llama.embedding_length"),
    ]
}

#[test]
fn gguf_made_by_hand() {
    for (name, bytes, reason) in gguf_cases() {
        let error = use_gguf(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

fn safetensors_cases() -> Vec<Case> {
    let entry =
        |json: &str, data: usize| write::with_header(&format!("{{{json}}}"), &vec![0; data]);
    let claim = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    vec![
        ("empty", vec![], "8 bytes"),
        ("header-of-3", claim(3), "at most 2"),
        ("header-of-2-63", claim(1 << 63), "at most 2"),
        ("header-of-2-64", claim(u64::MAX), "at most 2"),
        ("header-no-json", write::with_header("{]", &[]), "JSON of tensors"),
        ("header-a-list", write::with_header("[]", &[]), "JSON of tensors"),
        ("header-not-utf8", [&2u64.to_le_bytes()[..], b"\xFF{"].concat(), "JSON of tensors"),
        ("nested-deep", write::with_header(&"[".repeat(50_000), &[]), "JSON of tensors"),
        (
            "twice",
            entry(
                r#""a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}"#,
                2,
            ),
            "twice",
        ),
        (
            "outside",
            entry(r#""a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#, 7),
            "data within 7",
        ),
        (
            "backwards",
            entry(r#""a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}"#, 8),
            "data within",
        ),
        (
            "too-many-elements",
            entry(r#""a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}"#, 8),
            "3 elements",
        ),
        (
            "extents-overflow",
            entry(
                r#""a": {"dtype": "F32", "shape": [4294967296, 4294967297], "data_offsets": [0, 4]}"#,
                4,
            ),
            "product",
        ),
        (
            "extents-hidden",
            entry(
                r#""a": {"dtype": "F32", "shape": [0, 9223372036854775807, 4], "data_offsets": [0, 0]}"#,
                0,
            ),
            "product",
        ),
        (
            "bytes-overflow",
            entry(
                r#""a": {"dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4]}"#,
                4,
            ),
            "product",
        ),
        (
            "negative",
            entry(r#""a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}"#, 4),
            "JSON of tensors",
        ),
        (
            "overlap",
            entry(
                r#""a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}"#,
                8,
            ),
            "overlap",
        ),
        (
            "other-type",
            entry(r#""model.a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}"#, 4),
            "F8_E4M3 is not supported",
        ),
    ]
}

#[test]
fn safetensors_made_by_hand() {
    for (name, bytes, reason) in safetensors_cases() {
        let error = use_safetensors(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

/// Changes of the keys of `tiny-llama`'s configuration, or others, that are refused.
#[test]
fn configurations_that_are_not_covered() {
    for (model, key, value, reason) in [
        ("tiny-llama", "model_type", "\"mamba\"", "model_type mamba is not supported"),
        ("tiny-llama", "model_type", "null", "model_type"),
        ("tiny-llama", "num_key_value_heads", "3", "divides"),
        ("tiny-llama", "num_attention_heads", "3", "divisible"),
        ("tiny-llama", "head_dim", "15", "even"),
        ("tiny-llama", "rms_norm_eps", "-1e-5", "rms_norm_eps"),
        ("tiny-llama", "rope_theta", "1.0", "rope_theta"),
        ("tiny-llama", "rope_theta", "0", "rope_theta"),
        ("tiny-llama", "hidden_act", "\"gelu\"", "hidden_act"),
        ("tiny-llama", "eos_token_id", "320", "below 320"),
        ("tiny-llama", "eos_token_id", "[2, 999]", "below 320"),
        ("tiny-llama", "partial_rotary_factor", "0.5", "partial_rotary_factor"),
        ("tiny-llama", "quantization_config", "{}", "quantization_config"),
        ("tiny-llama", "num_local_experts", "8", "num_local_experts"),
        ("tiny-llama", "final_logit_softcapping", "30.0", "final_logit_softcapping"),
        ("tiny-llama", "layer_types", "[\"full_attention\"]", "a list of 2"),
        (
            "tiny-llama",
            "layer_types",
            "[\"full_attention\", \"sliding_attention\"]",
            "sliding_attention",
        ),
        ("tiny-llama", "rope_scaling", r#"{"rope_type": "dynamic", "factor": 2.0}"#, "dynamic"),
        ("tiny-llama", "rope_scaling", r#"{"type": "longrope", "factor": 2.0}"#, "longrope"),
        (
            "tiny-llama",
            "rope_scaling",
            r#"{"type": "linear", "rope_type": "yarn", "factor": 2.0}"#,
            "type of rope",
        ),
        ("tiny-llama", "rope_scaling", r#"{"factor": 2.0}"#, "rope_type"),
        ("tiny-llama", "rope_scaling", r#"{"type": "linear"}"#, "factor"),
        ("tiny-llama", "rope_scaling", r#"{"type": "linear", "factor": 0.0}"#, "factor"),
        (
            "tiny-llama",
            "rope_scaling",
            r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}"#,
            "high_freq_factor",
        ),
        (
            "tiny-llama",
            "rope_scaling",
            r#"{"rope_type": "yarn", "factor": 4.0}"#,
            "original_max_position_embeddings",
        ),
        (
            "tiny-llama",
            "rope_scaling",
            r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0}"#,
            "mscale",
        ),
        (
            "tiny-llama",
            "rope_scaling",
            r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": false}"#,
            "truncate",
        ),
        (
            "tiny-llama",
            "rope_parameters",
            r#"{"rope_type": "default", "rope_theta": 5000.0}"#,
            "as in rope_parameters",
        ),
        (
            "tiny-llama",
            "rope_parameters",
            r#"{"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}"#,
            "rope_parameters",
        ),
        (
            "tiny-llama-tied",
            "rope_scaling",
            r#"{"rope_type": "linear", "factor": 8.0}"#,
            "the same as rope_parameters",
        ),
        ("tiny-qwen2", "use_sliding_window", "true", ""),
        ("tiny-qwen3", "attention_bias", "true", "attention_bias"),
        (
            "tiny-qwen3",
            "layer_types",
            "[\"sliding_attention\", \"full_attention\"]",
            "sliding_window",
        ),
        ("tiny-gemma2", "sliding_window", "null", "sliding_window"),
        ("tiny-gemma2", "attn_logit_softcapping", "-1.0", "attn_logit_softcapping"),
        ("tiny-gemma2", "query_pre_attn_scalar", "0", "query_pre_attn_scalar"),
        ("tiny-gemma2", "hidden_activation", "\"gelu\"", "hidden_activation"),
        ("tiny-gemma3", "sliding_window_pattern", "0", "sliding_window_pattern"),
        ("tiny-gemma3", "use_bidirectional_attention", "true", "use_bidirectional_attention"),
        (
            "tiny-gemma3",
            "rope_parameters",
            r#"{"rope_type": "default", "rope_theta": 10000.0}"#,
            "one object each",
        ),
    ] {
        let text = std::fs::read(data(&format!("models/{model}/config.json"))).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        let result = ModelConfig::from_json("config.json", json.to_string().as_bytes());
        if reason.is_empty() {
            // A key that is on: layers from max_window_layers on, of which there are none here.
            assert!(result.unwrap().layers.iter().all(|layer| layer.window.is_none()));
            continue;
        }
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Format { .. } | Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{model} {key} {value}: {error}");
    }
}

#[test]
fn an_index_that_lies() {
    let tensor = || write::safetensors(&[("model.a", "F32", &[1], write::f32_bytes(&[1.0]))]);
    let secret = scratch("index-outside").join("secret.safetensors");
    std::fs::write(&secret, tensor()).unwrap();
    for (file, reason) in [
        ("../index-outside/secret.safetensors", "in the same folder"),
        (secret.to_str().unwrap(), "in the same folder"),
        ("gone.safetensors", "gone.safetensors"),
        ("here.safetensors", "a tensor of here.safetensors"),
    ] {
        let folder = scratch("index-lies");
        std::fs::write(folder.join("here.safetensors"), tensor()).unwrap();
        let index = serde_json::json!({ "weight_map": { "model.b": file } }).to_string();
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let error = Weights::open_folder(&folder).unwrap_err().to_string();
        assert!(error.contains(reason), "{file}: {error}");
    }
    let error = Weights::open_folder(scratch("index-none")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn types_that_are_not_read_are_named() {
    let mut gguf = write::Gguf::default();
    gguf.string("general.architecture", "llama");
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
    ] {
        gguf.u32(&format!("llama.{key}"), if key == "attention.head_count" { 1 } else { 256 });
    }
    gguf.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let error = |gguf: &mut write::Gguf, width: usize, kind: u32| {
        gguf.tensor("token_embd.weight", &[1, width], kind, &[0; 144]);
        Source::from_gguf(Blob::from_bytes("kquant", gguf.bytes())).unwrap_err().to_string()
    };
    let refused = error(&mut gguf.clone(), 256, 10);
    let expected = "`model.embed_tokens.weight` of type Q2_K is not supported";
    assert!(refused.contains(expected), "{refused}");
    assert!(refused.contains("Q8_0, Q4_K, Q5_K and Q6_K"), "{refused}");
    // Rows of whole blocks; those of K types have 256 values.
    let half = error(&mut gguf, 128, 12);
    assert!(half.contains("rows of whole blocks of 256 values"), "{half}");
}

/// Files that were found by fuzzing or made by hand: whatever they are, they do no harm.
#[test]
fn stored_files() {
    let folder = data("hostile");
    if std::env::var_os("ATTN_BLESS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        let save = |ending: &str, cases: Vec<Case>| {
            for (name, bytes, _) in cases {
                std::fs::write(folder.join(format!("{name}.{ending}")), bytes).unwrap();
            }
        };
        save("gguf", gguf_cases());
        save("safetensors", safetensors_cases());
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= gguf_cases().len() + safetensors_cases().len());
    for path in files {
        println!("{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        let result = match path.extension().and_then(|ending| ending.to_str()) {
            Some("gguf") => use_gguf(&bytes),
            Some("safetensors") => use_safetensors(&bytes),
            Some("json") => use_config(&bytes).and(use_tokenizer_config(&bytes)),
            other => panic!("{other:?}: what is {}", path.display()),
        };
        assert!(result.is_err(), "{}", path.display());
    }
}
