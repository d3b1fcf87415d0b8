//! Files as they should be: every family, every storage type, Hugging Face folders and GGUF.

mod common;

use attn_core::testing::TensorFile;
use attn_model::gguf::{Gguf, GgufType, dequantize};
use attn_model::{
    Blob, DType, EMBEDDING, Error, Family, ModelConfig, RopeScaling, Source, Values, Weights,
    export,
};
use common::{data, golden, model_folders, scratch, write};

fn open(name: &str) -> Source {
    Source::open(data(&format!("models/{name}"))).unwrap()
}

/// Tensors of a folder, read by another reader.
fn elsewhere(folder: &std::path::Path) -> Vec<TensorFile> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let weights = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    files.filter(weights).map(|path| TensorFile::read(path).unwrap()).collect()
}

#[test]
fn every_model_opens_and_its_tensors_are_those_of_the_file() {
    for folder in model_folders() {
        println!("{}", folder.display());
        let source = Source::open(&folder).unwrap();
        let files = elsewhere(&folder);
        for (name, shape) in source.config.tensors() {
            let tensor = source.weights.tensor(&name, &shape, DType::F32).unwrap();
            let file = files.iter().find(|file| file.contains(&name)).unwrap();
            let expected = file.f32(&name).unwrap();
            assert_eq!(tensor.shape, expected.shape(), "{name}");
            assert_eq!(tensor.to_f32(), expected.as_slice().unwrap(), "{name}");
        }
    }
}

#[test]
fn what_the_small_models_are_made_of() {
    let llama = open("tiny-llama").config;
    assert_eq!((llama.family, llama.hidden, llama.layers.len()), (Family::Llama, 64, 2));
    assert_eq!((llama.heads, llama.heads_kv, llama.head_dim), (4, 2, 16));
    assert_eq!((llama.scale, llama.eps, llama.tied), (0.25, 1e-5, false));
    assert_eq!((llama.bos, llama.eos.as_slice(), llama.context), (Some(1), &[2][..], 512));
    assert!(llama.layers.iter().all(|layer| layer.window.is_none()));

    let tied = open("tiny-llama-tied").config;
    let scaling = &tied.layers[0].rope.scaling;
    assert!(matches!(scaling, RopeScaling::Llama3 { original_context: 64, .. }), "{scaling:?}");
    assert_eq!((tied.layers[0].rope.theta, tied.tied), (500_000.0, true));
    assert_eq!(tied.dtype, Some(DType::BF16));

    let qwen2 = open("tiny-qwen2").config;
    assert!(qwen2.biases.qkv && !qwen2.biases.output && !qwen2.biases.mlp);
    assert!(qwen2.layers.iter().all(|layer| layer.window.is_none()), "a window that is off");

    let qwen3 = open("tiny-qwen3").config;
    assert!(qwen3.qk_norm && !qwen3.norm_offset);
    assert_eq!(qwen3.head_dim, 24);

    let mistral = open("tiny-mistral").config;
    assert!(mistral.layers.iter().all(|layer| layer.window == Some(8)));

    let gemma2 = open("tiny-gemma2").config;
    assert_eq!(gemma2.layers.iter().map(|l| l.window).collect::<Vec<_>>(), [Some(8), None]);
    assert_eq!((gemma2.attention_soft_cap, gemma2.final_soft_cap), (Some(5.0), Some(6.0)));
    assert_eq!((gemma2.scale, gemma2.embedding_scale), (1.0 / 24f64.sqrt(), 8.0));
    assert!(gemma2.norm_offset && gemma2.post_norms && !gemma2.qk_norm && gemma2.tied);

    let gemma3 = open("tiny-gemma3").config;
    let windows: Vec<_> = gemma3.layers.iter().map(|l| l.window).collect();
    assert_eq!(windows, [Some(8), Some(8), None]);
    assert_eq!((gemma3.attention_soft_cap, gemma3.final_soft_cap), (None, None));
    let ropes: Vec<_> = gemma3.layers.iter().map(|l| l.rope.clone()).collect();
    assert_eq!((ropes[0].theta, ropes[2].theta), (10_000.0, 1_000_000.0));
    assert_eq!(ropes[0].scaling, RopeScaling::None);
    assert_eq!(ropes[2].scaling, RopeScaling::Linear { factor: 8.0 });
}

#[test]
fn a_configuration_survives_being_written() {
    for folder in model_folders() {
        let config = Source::open(&folder).unwrap().config;
        let json = config.to_json(DType::F16).unwrap().to_string();
        let mut again = ModelConfig::from_json("again", json.as_bytes()).unwrap();
        assert_eq!(again.dtype, Some(DType::F16));
        again.dtype = config.dtype;
        // 1/sqrt(x) twice rounds.
        assert!((again.scale - config.scale).abs() < 1e-15);
        again.scale = config.scale;
        assert_eq!(again, config, "{}", folder.display());
    }
}

#[test]
fn blocks_are_dequantised_to_the_bit() {
    let kinds = [
        (2, "Q4_0"),
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (8, "Q8_0"),
        (12, "Q4_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
    ];
    let refused = [(10, "Q2_K"), (11, "Q3_K"), (20, "IQ4_NL"), (23, "IQ4_XS")];
    let mut checked = 0;
    for path in golden("gguf", "dequant-blocks.safetensors") {
        println!("{}", path.display());
        let file = TensorFile::read(&path).unwrap();
        for (id, name) in kinds {
            let bytes = file.u8(&format!("{name}.bytes")).unwrap();
            let expected = file.f32(&format!("{name}.values")).unwrap();
            let mut values = Vec::new();
            assert!(dequantize(GgufType::from_id(id), bytes.as_slice().unwrap(), &mut values));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(expected.as_slice().unwrap()), "{name}");
            assert_eq!(GgufType::from_id(id).name(), name);
            checked += 1;
        }
        for (id, name) in refused {
            assert!(file.contains(&format!("{name}.bytes")));
            assert!(!dequantize(GgufType::from_id(id), &[0; 256], &mut Vec::new()));
            assert_eq!(GgufType::from_id(id).name(), name);
        }
    }
    assert!(checked >= kinds.len());
}

#[test]
fn a_gguf_file_with_mixed_types() {
    for path in golden("gguf", ".gguf") {
        println!("{}", path.display());
        let expected = TensorFile::read(path.with_extension("expected.safetensors")).unwrap();
        let source = Source::open(&path).unwrap();
        let mut checked = 0;
        for name in expected.names().filter_map(|name| name.strip_prefix("weight.")) {
            let rows = expected.f32(&format!("weight.{name}")).unwrap();
            let shape = source.weights.shape(name).unwrap().to_vec();
            let count = rows.shape()[0];
            let got = source.weights.rows(name, &shape, 0..count, DType::F32).unwrap();
            assert_eq!(got.shape, rows.shape(), "{name}");
            assert_eq!(got.to_f32(), rows.as_slice().unwrap(), "{name}");
            checked += 1;
        }
        assert!(checked >= 5, "{checked} tensors have rows to compare with");
    }
    // The same model as the folder, but for what GGUF does not say and eps, which it rounds to f32.
    let mut gguf = Source::open(data("gguf/tiny-llama-mixed.gguf")).unwrap().config;
    let mut folder = open("tiny-llama").config;
    assert!((gguf.eps - 1e-5).abs() < 1e-12);
    gguf.eps = folder.eps;
    (gguf.dtype, folder.dtype, gguf.pad, folder.pad) = (None, None, None, None);
    assert_eq!(gguf, folder);
}

#[test]
fn rows_are_pieces_of_the_whole() {
    for source in [open("tiny-qwen2"), Source::open(data("gguf/tiny-llama-mixed.gguf")).unwrap()] {
        for (name, shape) in source.config.tensors() {
            let whole = source.weights.tensor(&name, &shape, DType::F32).unwrap().to_f32();
            let width: usize = shape[1..].iter().product();
            let mut joined = Vec::new();
            let cuts = [0, 1, 8, 13, shape[0]];
            for cut in cuts.windows(2) {
                let rows = cut[0].min(shape[0])..cut[1].min(shape[0]);
                let part = source.weights.rows(&name, &shape, rows.clone(), DType::F32).unwrap();
                assert_eq!(part.values.len(), rows.len() * width);
                joined.extend(part.to_f32());
            }
            assert_eq!(joined, whole, "{name}");
        }
        let shape = source.weights.shape(EMBEDDING).unwrap().to_vec();
        let reversed = std::ops::Range { start: 5, end: 4 };
        for rows in [0..shape[0] + 1, reversed] {
            let error = source.weights.rows(EMBEDDING, &shape, rows, DType::F32).unwrap_err();
            assert!(matches!(error, Error::Core(_)), "{error}");
        }
    }
}

fn loose(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Weights {
    Weights::from_safetensors(&[Blob::from_bytes("loose", write::safetensors(tensors))]).unwrap()
}

// safetensors/safetensors#231, Lokathor/bytemuck#82: data at odd bytes.
#[test]
fn tensors_at_odd_bytes() {
    let numbers = [1.5f32, -2.0, 65504.0, 1e-7];
    let halves: Vec<u8> =
        numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let weights = loose(&[
        ("model.a", "U8", &[3], vec![1, 2, 3]),
        ("model.b", "F32", &[2, 2], write::f32_bytes(&numbers)),
        ("model.c", "U8", &[1], vec![9]),
        ("model.d", "F16", &[4], halves),
    ]);
    let tensor = |name, shape: &[usize], dtype| weights.tensor(name, shape, dtype).unwrap();
    assert_eq!(tensor("model.b", &[2, 2], DType::F32).values, Values::F32(numbers.to_vec()));
    let rounded: Vec<f32> = numbers.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    assert_eq!(tensor("model.d", &[4], DType::F32).to_f32(), rounded);
    assert_eq!(tensor("model.b", &[2, 2], DType::F16).to_f32(), rounded);
    let error = weights.tensor("model.a", &[3], DType::F32).unwrap_err();
    assert!(error.to_string().contains("U8"), "{error}");
}

#[test]
fn conversions_round_and_never_overflow() {
    let weights = loose(&[("model.a", "F32", &[3], write::f32_bytes(&[65519.0, 65520.0, 3.4e38]))]);
    let part = |rows, dtype| weights.rows("model.a", &[3], rows, dtype);
    assert_eq!(part(0..1, DType::F16).unwrap().to_f32(), [65504.0]);
    let error = part(0..2, DType::F16).unwrap_err();
    assert!(error.to_string().contains("fit f16"), "{error}");
    assert!(part(0..2, DType::BF16).is_ok());
    assert!(part(0..3, DType::BF16).is_err());
    assert!(matches!(part(0..1, DType::U32), Err(Error::Unsupported { .. })));
}

#[test]
fn names_and_shapes_are_checked() {
    let weights = open("tiny-llama").weights;
    let error = weights.tensor("model.gone", &[1], DType::F32).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
    let error = weights.tensor(EMBEDDING, &[320, 63], DType::F32).unwrap_err();
    assert!(matches!(error, Error::TensorShape { .. }), "{error}");
}

#[test]
fn the_language_half_of_a_multimodal_model() {
    let one = |name: &'static str| (name, "F32", &[1usize][..], write::f32_bytes(&[1.0]));
    for prefix in ["language_model.model.", "model.language_model.", "model."] {
        let names: Vec<String> =
            ["embed_tokens.weight", "norm.weight"].iter().map(|n| format!("{prefix}{n}")).collect();
        let names: Vec<&'static str> = names.into_iter().map(|n| &*n.leak()).collect();
        let mut tensors: Vec<_> = names.into_iter().map(one).collect();
        tensors.push(one("vision_tower.norm.weight"));
        tensors.push(one("language_model.lm_head.weight"));
        let weights = loose(&tensors);
        let found: Vec<_> = weights.names().collect();
        assert_eq!(found, ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]);
    }
    let text = std::fs::read_to_string(data("models/tiny-gemma3/config.json")).unwrap();
    let nested =
        format!(r#"{{"model_type": "gemma3", "text_config": {text}, "eos_token_id": [1, 106]}}"#);
    let config = ModelConfig::from_json("nested", nested.as_bytes()).unwrap();
    assert_eq!(config, open("tiny-gemma3").config);
}

/// A model folder as llama.cpp's converter would write it, in f32.
fn as_gguf(source: &Source, arch: &str) -> write::Gguf {
    let config = &source.config;
    let mut gguf = write::Gguf::default();
    let key = |name: &str| format!("{arch}.{name}");
    gguf.string("general.architecture", arch);
    for (name, value) in [
        ("block_count", config.layers.len()),
        ("context_length", config.context),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.mlp),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.heads_kv),
        ("attention.key_length", config.head_dim),
    ] {
        gguf.u32(&key(name), value as u32);
    }
    gguf.f32(&key("attention.layer_norm_rms_epsilon"), config.eps as f32);
    gguf.f32(&key("rope.freq_base"), config.layers.last().unwrap().rope.theta as f32);
    if let Some(window) = config.layers[0].window.filter(|_| config.norm_offset) {
        gguf.u32(&key("attention.sliding_window"), window as u32);
    }
    if let Some(cap) = config.attention_soft_cap {
        gguf.f32(&key("attn_logit_softcapping"), cap as f32);
        gguf.f32(&key("final_logit_softcapping"), config.final_soft_cap.unwrap() as f32);
    }
    for (name, shape) in config.tensors() {
        let mut values = source.weights.tensor(&name, &shape, DType::F32).unwrap().to_f32();
        if config.norm_offset && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        gguf.tensor(&gguf_name(&name, config.norm_offset), &shape, 0, &write::f32_bytes(&values));
    }
    gguf
}

fn gguf_name(name: &str, gemma: bool) -> String {
    let before_mlp = if gemma { "post_attention_norm" } else { "ffn_norm" };
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", before_mlp),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn other_architectures_of_gguf() {
    for (folder, arch) in [
        ("tiny-qwen2", "qwen2"),
        ("tiny-qwen3", "qwen3"),
        ("tiny-gemma2", "gemma2"),
        ("tiny-gemma3", "gemma3"),
    ] {
        let source = open(folder);
        let gguf =
            Source::from_gguf(Blob::from_bytes(arch, as_gguf(&source, arch).bytes())).unwrap();
        assert_eq!(gguf.config.family, source.config.family);
        assert_eq!(gguf.config.tensors(), source.config.tensors(), "{arch}");
        assert_eq!(gguf.config.biases, source.config.biases);
        assert_eq!(gguf.config.attention_soft_cap, source.config.attention_soft_cap);
        for (name, shape) in source.config.tensors() {
            let tensor = |s: &Source| s.weights.tensor(&name, &shape, DType::F32).unwrap().to_f32();
            let (got, expected) = (tensor(&gguf), tensor(&source));
            for (got, expected) in got.iter().zip(&expected) {
                // 1 + w in f32 and back: half an ulp of a number below 2.
                assert!((got - expected).abs() <= 1.2e-7, "{arch} {name}: {got} {expected}");
            }
        }
    }
    // Layers 0 to 4 of every six slide, and layer 5 does not.
    let mut source = open("tiny-gemma3");
    let gguf = |source: &Source| {
        let gguf =
            Gguf::read(Blob::from_bytes("gemma3", as_gguf(source, "gemma3").bytes())).unwrap();
        ModelConfig::from_gguf(&gguf).unwrap()
    };
    assert_eq!(gguf(&source).layers[2].window, Some(8));
    source.config.layers.truncate(1);
    let one = gguf(&source);
    assert_eq!((one.layers[0].rope.theta, one.scale), (10_000.0, 1.0 / 24f64.sqrt()));
}

#[test]
fn biases_of_queries_and_keys_are_put_in_order_too() {
    let source = open("tiny-llama");
    let mut gguf = as_gguf(&source, "llama");
    let stored: Vec<f32> = (0..64).map(|i| i as f32).collect();
    for layer in 0..2 {
        gguf.tensor(&format!("blk.{layer}.attn_q.bias"), &[64], 0, &write::f32_bytes(&stored));
        for name in ["attn_k", "attn_v"] {
            let name = format!("blk.{layer}.{name}.bias");
            gguf.tensor(&name, &[32], 0, &write::f32_bytes(&stored[..32]));
        }
    }
    let gguf = Source::from_gguf(Blob::from_bytes("biased", gguf.bytes())).unwrap();
    assert!(gguf.config.biases.qkv && !gguf.config.biases.output);
    let bias = |name: &str, len: usize| {
        let name = format!("model.layers.1.self_attn.{name}.bias");
        gguf.weights.tensor(&name, &[len], DType::F32).unwrap().to_f32()
    };
    // Head 1 of dim 16: rows 16, 18, .. then 17, 19, ..
    assert_eq!(bias("q_proj", 64)[16..26], [16., 18., 20., 22., 24., 26., 28., 30., 17., 19.]);
    assert_eq!(bias("k_proj", 32)[16..18], [16.0, 18.0]);
    assert_eq!(bias("v_proj", 32), stored[..32]);
}

#[test]
fn exports_open_again() {
    let mut sources: Vec<_> = model_folders().iter().map(|f| Source::open(f).unwrap()).collect();
    sources.push(Source::open(data("gguf/tiny-llama-mixed.gguf")).unwrap());
    for (i, source) in sources.iter().enumerate() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let folder = scratch(&format!("export-{i}-{}", dtype.name()));
            let mut steps = Vec::new();
            export(source, &folder, dtype, |p| steps.push((p.tensor.to_owned(), p.done, p.total)))
                .unwrap();
            let tensors = source.config.tensors();
            assert_eq!(steps.len(), tensors.len());
            assert_eq!(steps.last().unwrap().1, steps.last().unwrap().2);
            let again = Source::open(&folder).unwrap();
            assert_eq!(again.config.dtype, Some(dtype));
            assert_eq!(again.config.layers, source.config.layers);
            for (name, shape) in tensors {
                let tensor = |s: &Source| s.weights.tensor(&name, &shape, dtype).unwrap();
                assert_eq!(tensor(&again), tensor(source), "{name}");
            }
            // The file itself is what other readers expect.
            let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
            safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let (ours, theirs) = (source.tokenizer().unwrap(), again.tokenizer().unwrap());
            assert_eq!(ours.is_some(), theirs.is_some());
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let text = "Hello world, 1234";
                assert_eq!(ours.encode(text, true).unwrap(), theirs.encode(text, true).unwrap());
                assert_eq!(ours.config_json(), theirs.config_json());
            }
        }
    }
}

#[test]
fn smollm2_has_the_known_sums() {
    let Some(path) = common::smollm2() else {
        return;
    };
    let source = Source::open(&path).unwrap();
    let config = &source.config;
    assert_eq!((config.hidden, config.layers.len(), config.mlp), (576, 30, 1536));
    assert_eq!((config.heads, config.heads_kv, config.head_dim), (9, 3, 64));
    assert_eq!((config.vocabulary, config.context, config.tied), (49_152, 8192, true));
    assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(1), &[2][..], Some(2)));
    assert_eq!(config.layers[0].rope.theta, 1e5);
    let (mut count, mut sum, mut absolute) = (0, 0.0, 0.0);
    for (name, shape) in config.tensors() {
        for value in source.weights.tensor(&name, &shape, DType::F32).unwrap().to_f32() {
            count += 1;
            sum += f64::from(value);
            absolute += f64::from(value.abs());
        }
    }
    assert_eq!(count, 134_515_008);
    // Sums in another order: f64 keeps nine digits of 134 million terms.
    assert!((sum - -10067.611954).abs() < 1e-5, "{sum}");
    assert!((absolute - 18618625.800991).abs() < 1e-3, "{absolute}");
    let name = "model.layers.7.self_attn.q_proj.weight";
    let row = source.weights.rows(name, &[576, 576], 0..1, DType::F32).unwrap().to_f32();
    for (got, expected) in
        row.iter().zip([-0.032_501_22, -0.094_360_35, 0.276_794_43, -0.156_219_48])
    {
        assert!((got - expected).abs() < 1e-7, "{got} {expected}");
    }
}
