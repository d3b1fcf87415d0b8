//! The flow of one row and of sixteen over queries and keys, beside the same over stored maps.

use std::time::Duration;

use attn_core::testing::{Values, fill};
use attn_vlsam::{
    AttentionFlow, AttentionSource, Config, LayerAttention, Layers, Mask, QueriesKeys, Tensor,
    dense,
};
use attn_wgpu::attention::{Attention, Inputs};
use attn_wgpu::bench::Clock;
use attn_wgpu::{Gpu, Result};
use criterion::Criterion;

const LAYERS: usize = 4;
const HEADS: usize = 9;
const KEY_HEADS: usize = 3;
const DIM: usize = 64;

fn main() -> Result<()> {
    let gpu = Gpu::new()?;
    let mut criterion = Criterion::default()
        .with_measurement(Clock::of(&gpu))
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for tokens in [256, 1000] {
        let mut group = criterion.benchmark_group(format!("{LAYERS}-layers-{tokens}-tokens"));
        let (computed, stored) = sources(&gpu, tokens)?;
        let flow = AttentionFlow::new(&gpu, Config::new())?;
        for count in [1, 16] {
            let rows: Vec<usize> = (tokens - count..tokens).collect();
            let sources: [(&str, &dyn AttentionSource); 2] =
                [("queries-keys", &computed), ("stored-maps", &stored)];
            for (name, source) in sources {
                flow.rows(source, &rows)?;
                let mut failure = None;
                group.bench_function(format!("{name}-{count}-rows"), |bencher| {
                    bencher.iter(|| {
                        let run = || {
                            flow.rows(source, &rows)?;
                            gpu.sync()
                        };
                        failure = run().err().or(failure.take());
                    });
                });
                failure.map_or(Ok(()), Err)?;
            }
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}

/// Normal queries and keys, and the maps that follow from them.
fn sources(gpu: &Gpu, tokens: usize) -> Result<(Layers, Layers)> {
    let causal = dense::Config::new().with_mask(Mask::Causal);
    let attention = Attention::new(gpu, causal.clone())?;
    let (mut computed, mut stored) = (Vec::new(), Vec::new());
    for layer in 0..LAYERS as u64 {
        let numbers = |stream, heads: usize| {
            let data = fill(layer, stream, Values::Normal, heads * tokens * DIM);
            Tensor::from_slice(gpu, &data, &[1, heads, tokens, DIM])
        };
        let (q, k) = (numbers(0, HEADS)?, numbers(1, KEY_HEADS)?);
        let inputs = Inputs::new(&q, &k, &k);
        let maps = attention.weights(inputs, &attention.forward(inputs)?.lse)?;
        stored.push(LayerAttention::Maps(maps.reshape(&[HEADS, tokens, tokens])?));
        computed.push(LayerAttention::QueriesKeys(QueriesKeys::new(&q, &k, causal.clone())));
    }
    Ok((Layers::new(tokens, computed), Layers::new(tokens, stored)))
}
