//! The commands from end to end, on small random models of attn-model's tests, and captures of a real one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use attn_core::Mask;
use attn_core::testing::{Capture, TensorFile};
use attn_model::Source;
use attn_model::attn_wgpu::{Error, Gpu};
use clap::Parser;
use serde_json::Value;

use super::fetch::SMOLLM2;
use super::info::memory;
use super::{Dtype, WeightsAs};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: super::Args,
}

fn run(words: &[&str]) -> Result<()> {
    let line = Line::try_parse_from([&["model"], words].concat())?;
    super::main(&line.args)
}

fn error(words: &[&str]) -> String {
    format!("{:#}", run(words).unwrap_err())
}

/// Whether there is a device; else a notice.
fn has_device() -> bool {
    let found = !matches!(Gpu::new(), Err(Error::NoAdapter { .. }));
    if !found {
        println!("skipped: no adapter on this machine");
    }
    found
}

/// A fresh folder.
fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("attn-xtask-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-model/tests/data/models")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The beginning of Moby-Dick.
fn moby() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/moby-dick-start.txt")
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn perplexity_of_a_small_model() {
    if !has_device() {
        return;
    }
    let (folder, model, moby) = (scratch("ppl"), models().join("tiny-llama"), moby());
    let (whole, continued) = (folder.join("whole.json"), folder.join("continued.json"));
    let same = "--window 40 --tokens 80 --policy dense --policy";
    let ppl = |policy: &str, more: &[&str], out: &Path| {
        let first = ["ppl", "--model", text(&model), "--text", text(&moby), "--json", text(out)];
        let words: Vec<_> = same.split(' ').chain([policy]).collect();
        run(&[&first[..], &words, more].concat()).unwrap();
        json(out)
    };
    let whole = ppl("sink-window", &[], &whole);
    let continued = ppl(r#"sink-window:{"sinks":1,"window":4}"#, &["--prompt", "10"], &continued);
    fs::remove_dir_all(&folder).unwrap();

    assert_eq!(whole["origin"]["model"]["name"], "tiny-llama");
    assert_eq!(
        (&whole["windows"], &whole["policies"][1]["policy"]["config"]["window"]),
        (&2.into(), &1020.into())
    );
    // The window is longer than the text.
    assert_eq!(whole["policies"][1]["ratio"], 1.0);
    assert_ne!(continued["policies"][1]["ratio"], 1.0);
    for window in 0..2 {
        let nll = |report: &Value| floats(&report["policies"][0]["windows"][window]["nll"]);
        let (whole, continued) = (nll(&whole), nll(&continued));
        assert_eq!((whole.len(), continued.len()), (39, 29));
        // Token by token or at once, the model says the same: rounding of f32 in two layers is far below this.
        for (a, b) in whole[10..].iter().zip(&continued) {
            assert!((a - b).abs() < 1e-4, "{a}, {b}");
        }
    }
}

/// The commands run FlexPrefill: with all blocks on like the model's own attention, else not.
#[test]
fn perplexity_with_blocks_left_out() {
    if !has_device() {
        return;
    }
    let folder = scratch("flexprefill");
    let (model, moby, out) = (models().join("tiny-llama"), moby(), folder.join("out.json"));
    let files = ["--model", text(&model), "--text", text(&moby), "--json", text(&out)];
    let (all, some) = (
        r#"flexprefill:{"block":8,"min_budget":null,"gamma":1.5}"#,
        r#"flexprefill:{"block":8,"min_budget":null,"max_budget":8,"gamma":0.5}"#,
    );
    let policies = ["--policy", "dense", "--policy", all, "--policy", some];
    let same = ["ppl", "--window", "90", "--tokens", "90"];
    run(&[&same[..], &files, &policies].concat()).unwrap();
    let report = json(&out);
    fs::remove_dir_all(&folder).unwrap();
    let ratio = |number: usize| report["policies"][number]["ratio"].as_f64().unwrap();
    assert!((ratio(1) - 1.0).abs() < 1e-4 && (ratio(2) - 1.0).abs() > 1e-3, "{report}");
}

/// Weights of a quantised file stay packed unless something else is asked for, under every policy.
#[test]
fn packed_weights_under_every_policy() {
    if !has_device() {
        return;
    }
    let folder = scratch("packed");
    let (model, moby) = (models().join("../gguf/tiny-llama-mixed.gguf"), moby());
    let policies = [
        "dense",
        r#"flexprefill:{"block":8,"min_budget":null,"gamma":1.5}"#,
        r#"sink-window:{"window":9}"#,
    ];
    let named = policies.iter().flat_map(|policy| ["--policy", *policy]);
    let ppl = |name: &str, weights: &[&str]| {
        let out = folder.join(name);
        let files = ["--model", text(&model), "--text", text(&moby), "--json", text(&out)];
        let same = ["ppl", "--window", "60", "--tokens", "60"];
        let named: Vec<_> = named.clone().collect();
        run(&[&same[..], &files, &named, weights].concat()).unwrap();
        json(&out)
    };
    let (packed, exact) = (ppl("packed.json", &[]), ppl("f32.json", &["--weights", "f32"]));
    let words = ["--model", text(&model), "--prompt", "Call me", "--max-tokens", "4"];
    run(&[&["run"], &words[..]].concat()).unwrap();
    run(&["info", "--model", text(&model)]).unwrap();
    fs::remove_dir_all(&folder).unwrap();

    let weights =
        |report: &Value| report["origin"]["model"]["weights"].as_str().unwrap().to_owned();
    assert!(weights(&packed).contains("Q4_0") && weights(&exact) == "f32", "{packed}");
    for number in 0..policies.len() {
        let nll = |report: &Value| floats(&report["policies"][number]["windows"][0]["nll"]);
        // What is not packed is in f16.
        for (a, b) in nll(&packed).iter().zip(nll(&exact)) {
            assert!((a - b).abs() < 2e-2, "{a}, {b}");
        }
    }
}

#[test]
fn memory_is_told_before_loading() {
    let mixed = models().join("../gguf/tiny-llama-mixed.gguf");
    let told = |path: &Path, weights| {
        let source = Source::open(path).unwrap();
        memory(&source, weights, Dtype::F16, 100)
    };
    let all = told(&mixed, None);
    assert_eq!(all.matches("on the device, ").count(), 3, "{all}");
    assert!(all.starts_with("on the device, packed\n") && all.contains(", packed\n  "), "{all}");
    assert!(all.contains("with keys and values of 100 tokens, 0.0 MiB in f16"), "{all}");
    assert!(all.contains("with keys and values of 512 tokens, 0.1 MiB in f16"), "{all}");
    let one = told(&mixed, Some(WeightsAs::Bf16));
    assert!(one.starts_with("on the device, bf16\n") && one.contains("  bf16 "), "{one}");
    let folder = told(&models().join("tiny-llama"), None);
    assert!(folder.starts_with("on the device, f16\n"), "{folder}");
}

#[test]
fn needles_in_a_small_model() {
    if !has_device() {
        return;
    }
    let (folder, model, moby) = (scratch("needle"), models().join("tiny-llama"), moby());
    let (out, page) = (folder.join("needle.json"), folder.join("needle.html"));
    let files = ["--text", text(&moby), "--json", text(&out), "--html", text(&page)];
    let same = "--lengths 420,470 --depths 0,100 --needles 2 --answer-tokens 4 --policy dense --policy sink-window";
    let words: Vec<_> = same.split(' ').collect();
    run(&[&["needle", "--model", text(&model)], &files[..], &words].concat()).unwrap();
    let (report, page) = (json(&out), fs::read_to_string(page).unwrap());
    fs::remove_dir_all(&folder).unwrap();

    assert!(page.starts_with("<!doctype html>") && page.matches("<figure>").count() == 2);
    assert_eq!(report["settings"]["chat_template"], true);
    let policies = report["policies"].as_array().unwrap();
    for policy in policies {
        assert_eq!(policy["cells"].as_array().unwrap().len(), 4);
        for cell in policy["cells"].as_array().unwrap() {
            let asked = cell["asked"].as_array().unwrap();
            assert_eq!(asked.len(), 2);
            for asked in asked {
                let tokens = asked["prompt_tokens"].as_u64().unwrap();
                assert!(tokens <= cell["length"].as_u64().unwrap(), "{asked}");
            }
        }
    }
    // Both see everything, and so say the same.
    assert_eq!(policies[0]["cells"], policies[1]["cells"]);
    let short =
        error(&["needle", "--model", text(&model), "--text", text(&moby), "--lengths", "9"]);
    assert!(short.starts_with("--lengths: 9 tokens do not hold needles and question"), "{short}");
}

#[test]
fn captures_of_a_small_model() {
    if !has_device() {
        return;
    }
    let (folder, moby) = (scratch("capture"), moby());
    // Gemma 2, which has soft-caps and a window in every other layer, with the tokenizer of another.
    for name in ["config.json", "model.safetensors"] {
        fs::copy(models().join("tiny-gemma2").join(name), folder.join(name)).unwrap();
    }
    let tokenizer = models().join("tiny-llama/tokenizer.json");
    fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
    let out = folder.join("out.safetensors");
    let words = |layers| {
        let files = ["--model", text(&folder), "--text", text(&moby), "--out", text(&out)];
        [&["capture"], &files[..], &["--tokens", "20", "--dtype", "f32", "--layers", layers]]
            .concat()
    };
    let mut masks = Vec::new();
    for layer in ["0", "1"] {
        run(&words(layer)).unwrap();
        let bytes = fs::read(&out).unwrap();
        run(&words(layer)).unwrap();
        assert!(bytes == fs::read(&out).unwrap(), "the same capture is the same file");
        let capture = Capture::load(&out).unwrap();
        assert_eq!(capture.config().soft_cap, Some(5.0));
        assert_eq!(capture.config().scale, Some(24_f64.powf(-0.5)));
        let inputs = capture.layer(layer.parse().unwrap()).unwrap();
        assert_eq!((inputs.shape.q(), inputs.shape.v()), ([1, 4, 20, 32], [1, 2, 20, 32]));
        masks.push(capture.config().mask.clone());
    }
    assert_eq!(masks, [Mask::Window { left: 7, right: 0 }, Mask::Causal]);
    let mixed = error(&words("0,1"));
    assert!(mixed.starts_with("layer 0 has a window of 8, layer 1 has no window: "), "{mixed}");
    assert!(error(&words("2")).contains("no layer 2: the model has layers 0 to 1"));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_asked_wrongly_is_said() {
    let (model, moby) = (models().join("tiny-llama"), moby());
    let ppl = ["ppl", "--model", text(&model), "--text", text(&moby)];
    let with = |more: &[&str]| error(&[&ppl[..], more].concat());
    assert!(with(&["--window", "100000"]).contains("do not fill a window of 100000"));
    assert!(with(&["--policy", "nothing"]).contains("there are dense, flexprefill, sink-window"));
    let settings = with(&["--policy", r#"sink-window:{"sink":1}"#]);
    assert!(settings.contains("unknown field `sink`"), "{settings}");
    let missing = error(&["ppl", "--model", text(&model), "--text", "no-such-file"]);
    assert!(missing.starts_with("reading no-such-file"), "{missing}");
    let depth = error(&["needle", "--model", text(&model), "--depths", "101"]);
    assert!(depth.contains("101 is not in 0..=100"), "{depth}");
}

/// The shipped capture was made by another program from the same weights, in f32, and rounded to f16, as here. Numbers
/// that differ little may be rounded to neighbours, which are up to 2^-10 of the number apart. What goes beyond that is
/// f32's drift through 18 layers, measured at 1e-6 of the largest number of a tensor and allowed five times of it.
#[test]
fn captures_of_smollm2_are_the_shipped_ones() {
    let Some(model) =
        SMOLLM2.paths().ok().and_then(|paths| paths.into_iter().find(|path| path.is_file()))
    else {
        println!("skipped: SmolLM2 is not here; `cargo xtask model fetch smollm2` gets it");
        return;
    };
    if !has_device() {
        return;
    }
    let (folder, moby) = (scratch("smollm2"), moby());
    let out = folder.join("out.safetensors");
    let files = ["--model", text(&model), "--text", text(&moby), "--out", text(&out)];
    let more = ["--tokens", "1024", "--layers", "18,11"];
    run(&[&["capture"], &files[..], &more].concat()).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/smollm2-moby-1024.safetensors");
    let (own, shipped) = (TensorFile::read(&out).unwrap(), TensorFile::read(shipped).unwrap());
    let ours = Capture::load(&out).unwrap();
    fs::remove_dir_all(&folder).unwrap();

    assert_eq!(*ours.config(), Capture::from_file(&shipped).unwrap().config().clone());
    assert_eq!(own.names().collect::<Vec<_>>(), shipped.names().collect::<Vec<_>>());
    for key in ["layout", "heads", "heads_kv", "dim", "scale", "rope", "causal", "tokens", "layers"]
    {
        assert_eq!(own.config()[key], shipped.config()[key], "{key}");
    }
    for name in shipped.names() {
        let (own, expected) = (own.f64(name).unwrap(), shipped.f64(name).unwrap());
        assert_eq!(own.shape(), expected.shape(), "{name}");
        let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let drift =
            |(own, x): (&f64, &f64)| ((own - x).abs() - x.abs() / 1024.0).max(0.0) / largest;
        let worst = own.iter().zip(&expected).map(drift).fold(0.0, f64::max);
        println!("{name}: largest {largest:.2}, drift {worst:.1e}");
        assert!(worst <= 5e-6, "{name}: {worst:e}");
    }
}
