//! What FlexPrefill keeps in a language model: `measure MODEL TEXT [TOKENS] [JSON of a Config] [TOKENS OF A PART]`.
//!
//! Runs the beginning of a text with the model's own attention and with the policy, and says how far logits
//! are from each other, how well both predict the text, which patterns heads have, how many pairs were computed
//! and which share of the attention mass that keeps. The mass is measured layer by layer on the same queries
//! and keys, as the ratio of the sums of exponentials of both.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use attn_flexprefill::policy::FlexPrefillPolicy;
use attn_flexprefill::{Config, Gpu, Inputs, Tensor};
use attn_model::policy::{Dense, Layer, ModelShape};
use attn_model::{AttentionPolicy, Model, Options, Source};
use attn_wgpu::bench::cpu_time;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The policy, and after each layer the attention on its selection once more, for the log-sum-exp.
#[derive(Debug, Clone)]
struct Measured {
    policy: FlexPrefillPolicy,
    method: Option<attn_flexprefill::FlexPrefill>,
    /// Sum over rows and heads of the mass kept, and their number; of each layer that selected.
    mass: Arc<Mutex<Vec<(f64, usize)>>>,
}

impl Measured {
    fn measure(&self, layer: &Layer<'_>) -> attn_model::Result<()> {
        let last = self.policy.passes().last();
        let (Some(method), Some(selection)) =
            (&self.method, last.and_then(|pass| pass.selection.as_ref()))
        else {
            return Ok(());
        };
        let (q, k, v) = (layer.rotated_q()?, layer.rotated_keys()?, layer.values()?);
        let inputs = Inputs::new(&q, &k, &v);
        let some = method.attend(inputs, selection)?.lse.to_vec::<f32>()?;
        let all = layer.attention().forward(inputs)?.lse.to_vec::<f32>()?;
        let kept = some.iter().zip(&all).map(|(some, all)| f64::from(some - all).exp());
        self.mass.lock().unwrap_or_else(|e| e.into_inner()).push((kept.sum(), some.len()));
        Ok(())
    }
}

impl AttentionPolicy for Measured {
    fn begin(&mut self, shape: &ModelShape) -> attn_model::Result<()> {
        self.policy.begin(shape)?;
        let mut attention = attn_core::dense::Config::new()
            .with_mask(attn_core::Mask::Causal)
            .with_scale(shape.scale);
        if let Some(cap) = shape.soft_cap {
            attention = attention.with_soft_cap(cap);
        }
        let config = self.policy.config().clone();
        self.method =
            Some(attn_flexprefill::FlexPrefill::with_attention(&shape.gpu, config, attention)?);
        Ok(())
    }

    fn attend(&mut self, layer: &Layer<'_>) -> attn_model::Result<Tensor> {
        let out = self.policy.attend(layer)?;
        self.measure(layer)?;
        Ok(out)
    }

    fn fork(&self) -> attn_model::Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

/// Residual stream behind the last layer, of a prompt in parts.
fn run(model: &Model, policy: impl AttentionPolicy, tokens: &[u32], part: usize) -> Result<Run> {
    let mut session = model.session_with(tokens.len(), policy)?;
    let cpu = || cpu_time().unwrap_or_default();
    let start = (Instant::now(), cpu());
    let mut hidden = Vec::new();
    for part in tokens.chunks(part) {
        let part = session.forward(part)?;
        // Waits for the device, so that the time is that of the prompt.
        part.narrow(0, 0, 1)?.to_vec::<f32>()?;
        hidden.push(part);
    }
    let took = [start.0.elapsed(), cpu() - start.1].map(|time| time.as_secs_f64());
    Ok(Run { took, session, hidden })
}

struct Run {
    /// Seconds by the clock, and CPU seconds.
    took: [f64; 2],
    session: attn_model::Session,
    hidden: Vec<Tensor>,
}

/// Mean negative log-probability of the tokens behind the first, and the largest difference of logits.
fn compare(runs: [&Run; 2], tokens: &[u32]) -> Result<([f64; 2], f32)> {
    let (mut loss, mut far, mut position) = ([0.0; 2], 0f32, 0);
    for (part, other) in runs[0].hidden.iter().zip(&runs[1].hidden) {
        let (rows, at_once) = (part.shape()[0], runs[0].session.logit_rows());
        for first in (0..rows).step_by(at_once) {
            let rows = first..(first + at_once).min(rows);
            let logits = [
                runs[0].session.logits(part, rows.clone())?.to_vec::<f32>()?,
                runs[1].session.logits(other, rows.clone())?.to_vec::<f32>()?,
            ];
            let differences = logits[0].iter().zip(&logits[1]).map(|(a, b)| (a - b).abs());
            far = differences.fold(far, f32::max);
            let width = logits[0].len() / rows.len();
            for row in 0..rows.len() {
                let Some(&token) = tokens.get(position + row + 1) else { continue };
                for (loss, logits) in loss.iter_mut().zip(&logits) {
                    let row = &logits[row * width..][..width];
                    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
                    *loss += sum.ln() - f64::from(row[token as usize] - top);
                }
            }
            position += rows.len();
        }
    }
    Ok((loss.map(|loss| loss / (tokens.len() - 1) as f64), far))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = args.get(..2).ok_or("give a model and a text")? else { unreachable!() };
    let count = args.get(2).map_or(Ok(2048), |count| count.parse())?;
    let config = match args.get(3) {
        Some(json) => serde_json::from_str(json)?,
        None => Config::new().with_block(64).with_budget(Some(128), None),
    };
    let part = args.get(4).map_or(Ok(count), |part| part.parse())?;
    let source = Source::open(Path::new(model))?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let mut tokens = tokenizer.encode(&std::fs::read_to_string(text)?, true)?;
    tokens.truncate(count);
    let gpu = Gpu::new()?;
    let model = Model::from_source(&gpu, &source, Options::default(), &mut |_, _| ())?;

    // Kernels are compiled when they first run; the prompt's time is to be without that.
    let policy = || FlexPrefillPolicy::new(config.clone());
    let beginning = &tokens[..tokens.len() / 4];
    run(&model, Dense, beginning, part)?;
    run(&model, policy(), beginning, part)?;
    let dense = run(&model, Dense, &tokens, part)?;
    let sparse = run(&model, policy(), &tokens, part)?;
    let ([own, other], far) = compare([&dense, &sparse], &tokens)?;
    println!("{} tokens in parts of {part}, {config:?}", tokens.len());
    for (name, Run { took: [clock, cpu], .. }) in [("dense", &dense), ("FlexPrefill", &sparse)] {
        println!("prompt, {name}: {clock:.2} s by the clock, {cpu:.2} CPU seconds");
    }
    println!("nats a token: dense {own:.4}, FlexPrefill {other:.4}; logits differ by {far:.1e}");

    let mass = Arc::default();
    let measured = Measured { policy: policy(), method: None, mass: Arc::clone(&mass) };
    let run = run(&model, measured, &tokens, part)?;
    let mass = mass.lock().map_err(|_| "a measurement failed")?;
    let (sum, rows) = mass.iter().fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    let passes = run.session.policy_as::<Measured>().ok_or("no policy")?.policy.passes();
    let heads = passes.iter().map(|pass| pass.heads()).collect::<Result<Vec<_>, _>>()?.concat();
    let density = heads.iter().map(|head| head.density).sum::<f64>() / heads.len().max(1) as f64;
    let aware = heads.iter().filter(|head| head.head.query_aware).count();
    println!(
        "{aware} of {} heads query-aware, {:.1} % of pairs computed",
        heads.len(),
        100.0 * density
    );
    println!("attention mass kept: {:.4}", sum / (rows as f64).max(1.0));
    let lowest = mass.iter().map(|(sum, rows)| sum / *rows as f64).fold(1.0, f64::min);
    println!("in the layer and part that keeps least: {lowest:.4}");
    Ok(())
}
