//! Time and memory of the flow over a language model's attention: `measure MODEL TEXT [TOKENS]`.
//!
//! Runs the model on the beginning of a text, then the flow of one row and of sixteen over all layers: with
//! probabilities computed again where they are needed, with the maps of one layer at a time, and with the maps of
//! all layers, stored first. Times are of a warm run, on a software driver CPU time over the cores; memory is what
//! is held at most besides the model, its cache and the queries.

use std::error::Error;
use std::path::Path;

use attn_model::{Model, Options, Pass, Source};
use attn_vlsam::{
    AttentionFlow, AttentionSource, Config, Gpu, LayerAttention, Layers, ModelAttention, Recorder,
    Tensor,
};
use attn_wgpu::attention::{Attention, Inputs};
use attn_wgpu::bench::Clock;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The maps of a layer, made when they are asked for.
struct OneByOne<'a> {
    source: &'a ModelAttention,
}

impl AttentionSource for OneByOne<'_> {
    fn tokens(&self) -> usize {
        self.source.tokens()
    }

    fn layers(&self) -> usize {
        self.source.layers()
    }

    fn layer(&self, layer: usize) -> attn_wgpu::Result<LayerAttention> {
        match self.source.layer(layer)? {
            LayerAttention::QueriesKeys(own) => {
                let attention = Attention::new(own.q.gpu(), own.attention.clone())?;
                // Of the values only the extents count.
                let values = own.k.narrow(3, 0, 4)?;
                let inputs = Inputs::new(&own.q, &own.k, &values);
                let maps = attention.weights(inputs, &attention.forward(inputs)?.lse)?;
                let [heads, tokens] = [own.q.shape()[1], own.q.shape()[2]];
                Ok(LayerAttention::Maps(maps.reshape(&[heads, tokens, tokens])?))
            }
            other => Ok(other),
        }
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(text)) = (args.next(), args.next()) else {
        println!("measure MODEL TEXT [TOKENS]");
        return Ok(());
    };
    let tokens = args.next().map_or(Ok(1000), |tokens| tokens.parse::<usize>())?;
    // A prompt of a thousand tokens may take minutes on a loaded processor.
    let gpu = Gpu::builder().timeout(std::time::Duration::from_secs(900)).build()?;
    println!("{}", gpu.adapter());
    let source = Source::open(Path::new(&model))?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let ids = tokenizer.encode(&std::fs::read_to_string(text)?, false)?;
    let ids = ids.get(..tokens).ok_or("the text is too short")?;
    let model = Model::from_source(&gpu, &source, Options::exact(), &mut |_, _| ())?;
    let mut recorder = Recorder::new(&model);
    let mut session = model.session(tokens)?;
    session.forward_with(ids, Pass::new().with_observer(&mut recorder))?;
    gpu.sync()?;
    let attention = recorder.source()?;
    println!(
        "{} layers of {} heads, {tokens} tokens; the queries take {:.1} MiB",
        attention.layers(),
        model.config().heads,
        mib(recorder.bytes())
    );
    let flow = AttentionFlow::new(&gpu, Config::new())?;
    for count in [1, 16] {
        let rows: Vec<usize> = (tokens - count..tokens).collect();
        println!("rows: {count}");
        let again =
            measure(&gpu, "computed again", || flow.rows(&attention, &rows).map(|f| f.rows))?;
        let one = OneByOne { source: &attention };
        let by_layer = measure(&gpu, "maps of one layer at a time", || {
            flow.rows(&one, &rows).map(|f| f.rows)
        })?;
        let all = measure(&gpu, "maps of all layers, stored first", || {
            let layers = (0..one.layers()).map(|layer| one.layer(layer));
            let stored = Layers::new(tokens, layers.collect::<attn_wgpu::Result<_>>()?);
            flow.rows(&stored, &rows).map(|f| f.rows)
        })?;
        println!(
            "  largest difference of rows, relative: {:.1e}, {:.1e}",
            distance(&again, &by_layer),
            distance(&again, &all)
        );
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Best of three warm runs, and what they held at most.
fn measure(gpu: &Gpu, what: &str, run: impl Fn() -> attn_wgpu::Result<Tensor>) -> Result<Vec<f32>> {
    let clock = Clock::of(gpu);
    let rows = run()?.to_vec::<f32>()?;
    let before = gpu.memory().in_use;
    gpu.reset_peak();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = clock.now();
        drop(run()?);
        gpu.sync()?;
        best = best.min((clock.now() - start).as_secs_f64());
    }
    let held = gpu.memory().peak.saturating_sub(before);
    println!("  {what}: {best:.3} s, {:.1} MiB", mib(held));
    Ok(rows)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max)
}
