//! `cargo xtask model capture`: queries, keys and values of some layers, for `cargo xtask bench --qkv`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attn_model::attn_wgpu::Tensor;
use attn_model::{AttentionView, ModelConfig, Observer, Options, Pass, Session, Source, Wants};
use half::f16;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::loaded::{Tokens, device, load, read, tokenizer};
use super::{Dtype, bar, mib, report};

/// Write the queries, keys and values of some layers while the model reads a text.
///
/// The file is what `cargo xtask bench --qkv` reads: safetensors with `layer<L>.q`, `.k` and `.v`, rotated by their
/// positions, and the model's scale, mask and soft-cap as JSON under the metadata key `config`. The model runs in f32,
/// in one pass and only up to the last of the layers.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// A file with the text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Layers, the first of which is 0; all must see keys by the same rule
    #[arg(long, value_name = "L,L,..", value_delimiter = ',', required = true)]
    layers: Vec<usize>,
    /// Tokens that the model reads
    #[arg(long, value_name = "N")]
    tokens: usize,
    /// Tokens of the text in front of them that are left out
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Type of the numbers in the file: f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    dtype: Dtype,
    /// Type of the weights on the device
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    weights: Dtype,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model)?;
    if args.dtype == Dtype::Bf16 {
        bail!("--dtype bf16 is not one of f16 and f32");
    }
    let mut layers = args.layers.clone();
    layers.sort_unstable();
    layers.dedup();
    let rule = rule(&source.config, &layers)?;
    let tokens = cut(&Tokens::of(&tokenizer(&source)?, &read(&args.text)?)?, args)?;
    let gpu = device()?;
    let model = load(&gpu, &source, Options::exact().with_weights(args.weights.into()))?;

    let end = layers.last().map_or(0, |last| last + 1);
    let bar = bar("{bar:30} layer {pos}/{len}, {elapsed}");
    bar.set_length(end as u64);
    let mut recorder =
        Recorder { layers: &layers, dtype: args.dtype, seen: BTreeMap::new(), bar: &bar };
    let mut session = Session::new(&model, tokens.len())?;
    session.run_to(end, &tokens, Pass::new().with_observer(&mut recorder))?;
    let seen = recorder.seen;
    bar.finish_and_clear();

    let config = config(&source.config, rule, &layers, args);
    let source = format!(
        "forward pass of {} with {} weights and f32 arithmetic on {} tokens of {}, stored as {}",
        report::name(&args.model),
        model.options().weights.name(),
        tokens.len(),
        report::name(&args.text),
        name(args.dtype),
    );
    let bytes = save(&args.out, &seen, args.dtype, &config, &source)?;
    println!(
        "{}: layers {} of {} tokens, {}",
        args.out.display(),
        layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
        tokens.len(),
        mib(bytes)
    );
    println!("cargo xtask bench --qkv {}", args.out.display());
    Ok(())
}

/// The window of all these layers; a file has one mask.
fn rule(config: &ModelConfig, layers: &[usize]) -> Result<Option<usize>> {
    let count = config.layers.len();
    if let Some(layer) = layers.iter().find(|layer| **layer >= count) {
        bail!("there is no layer {layer}: the model has layers 0 to {}", count - 1);
    }
    let window = |layer: usize| config.layers[layer].window;
    let first = layers.first().context("no layer")?;
    let other = layers.iter().find(|layer| window(**layer) != window(*first));
    if let Some(other) = other {
        let shown = |layer: usize| match window(layer) {
            Some(window) => format!("layer {layer} has a window of {window}"),
            None => format!("layer {layer} has no window"),
        };
        bail!("{}, {}: a file holds layers of one rule, so take two", shown(*first), shown(*other));
    }
    Ok(window(*first))
}

/// The tokens to read, with what the model wants in front.
fn cut(tokens: &Tokens, args: &Args) -> Result<Vec<u32>> {
    // With none of its own, there is nothing to capture.
    let Some(own) = args.tokens.checked_sub(tokens.front.len()).filter(|own| *own > 0) else {
        bail!("--tokens {} holds no token of the text", args.tokens);
    };
    let rest = tokens.text.get(args.skip..).unwrap_or_default();
    if rest.len() < own {
        let Args { skip, .. } = args;
        bail!("the text has {} tokens behind the first {skip}, not {own}", rest.len());
    }
    Ok([&tokens.front, &rest[..own]].concat())
}

/// Numbers of one tensor as they are stored.
struct Numbers {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Keeps the inputs of some layers on the host.
struct Recorder<'a> {
    layers: &'a [usize],
    dtype: Dtype,
    /// By layer and q, k or v.
    seen: BTreeMap<(usize, &'static str), Numbers>,
    bar: &'a ProgressBar,
}

impl Observer for Recorder<'_> {
    fn hidden(&mut self, layer: usize, _: &Tensor) -> attn_model::Result<()> {
        self.bar.set_position(layer as u64);
        Ok(())
    }

    fn wants(&mut self, layer: usize, _: Range<usize>) -> Wants {
        match self.layers.contains(&layer) {
            true => Wants::nothing().with_inputs(),
            false => Wants::nothing(),
        }
    }

    fn attention(&mut self, layer: usize, view: &AttentionView) -> attn_model::Result<()> {
        let Some(inputs) = &view.inputs else { return Ok(()) };
        for (name, tensor) in [("q", &inputs.q), ("k", &inputs.k), ("v", &inputs.v)] {
            let bytes = stored(&tensor.to_vec::<f32>()?, self.dtype)?;
            self.seen.insert((layer, name), Numbers { shape: tensor.shape().to_vec(), bytes });
        }
        Ok(())
    }
}

/// Numbers that do not fit are an error: infinity in a benchmark's inputs helps nobody.
fn stored(numbers: &[f32], dtype: Dtype) -> Result<Vec<u8>, attn_core::Error> {
    let largest = if dtype == Dtype::F32 { f32::MAX } else { f16::MAX.to_f32() };
    if let Some(number) = numbers.iter().find(|x| !x.is_finite() || x.abs() > largest) {
        let expected = format!("numbers up to {largest:e}, the largest of {}", name(dtype));
        return Err(attn_core::Error::data("dtype", expected, number));
    }
    Ok(match dtype {
        Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
    })
}

fn name(dtype: Dtype) -> &'static str {
    attn_model::DType::from(dtype).name()
}

/// What `attn_core::testing::Capture` reads, and notes for readers.
fn config(model: &ModelConfig, window: Option<usize>, layers: &[usize], args: &Args) -> Value {
    let mut config = json!({
        "layout": "[batch, heads, tokens, dim]",
        "heads": model.heads,
        "heads_kv": model.heads_kv,
        "dim": model.head_dim,
        "scale": model.scale,
        "rope": "already applied",
        "causal": true,
        "tokens": args.tokens,
        "text": report::name(&args.text),
        "skipped_tokens": args.skip,
        "layers": layers,
    });
    if let Some(window) = window {
        config["window"] = window.into();
    }
    if let Some(cap) = model.attention_soft_cap {
        config["soft_cap"] = cap.into();
    }
    config
}

/// Writes a safetensors file and returns its length. The library for that puts metadata in any order, and the same
/// capture should be the same file.
fn save(
    path: &Path,
    seen: &BTreeMap<(usize, &'static str), Numbers>,
    dtype: Dtype,
    config: &Value,
    source: &str,
) -> Result<u64> {
    let metadata = json!({ "config": config.to_string(), "source": source });
    let mut header = json!({ "__metadata__": metadata });
    let mut end = 0;
    for ((layer, name), Numbers { shape, bytes }) in seen {
        let start = end;
        end += bytes.len();
        header[format!("layer{layer}.{name}")] = json!({
            "dtype": if dtype == Dtype::F32 { "F32" } else { "F16" },
            "shape": shape,
            "data_offsets": [start, end],
        });
    }
    // Data begin at a multiple of 8 bytes.
    let mut header = header.to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        seen.values().try_for_each(|numbers| file.write_all(&numbers.bytes))?;
        file.flush()
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok((8 + header.len() + end) as u64)
}
