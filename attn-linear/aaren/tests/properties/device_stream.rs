//! Streams on a device: token by token, by blocks, saved, merged, and very long.

use attn_aaren::{Aaren, Config, Gpu, Inputs, State, Tensor};
use attn_core::testing::{Values, fill};
use attn_wgpu::testing::{gpu, open};
use ndarray::s;

use crate::device::{download, relative_l2, upload};
use crate::support::{Data, Shape};

const HEADS: usize = 4;
const DIM: usize = 32;
/// Of scores.
const SPREAD: f64 = 5.0;

/// A stream's tokens on the device and on the host, `[heads, tokens, dim]`.
struct Stream {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    tokens: usize,
}

/// The state of one head in f64.
struct Sums {
    max: f64,
    sum: f64,
    weighted: [f64; DIM],
}

impl Stream {
    fn new(tokens: usize, seed: u64) -> Stream {
        let numbers = |stream, count| fill(seed, stream, Values::Normal, count);
        let many = HEADS * tokens * DIM;
        Stream { q: numbers(0, HEADS * DIM), k: numbers(1, many), v: numbers(2, many), tokens }
    }

    fn config() -> Config {
        Config::new().with_scale(SPREAD / (DIM as f64).sqrt())
    }

    fn upload(&self, gpu: &Gpu) -> [Tensor; 3] {
        let shape = [1, HEADS, self.tokens, DIM];
        [
            Tensor::from_slice(gpu, &self.q, &[HEADS, DIM]).unwrap(),
            Tensor::from_slice(gpu, &self.k, &shape).unwrap(),
            Tensor::from_slice(gpu, &self.v, &shape).unwrap(),
        ]
    }

    /// Outputs `[heads, dim]` behind every `every` tokens and behind the last one. In f64 a plain sum of
    /// 100,000 terms is good to 1e-11, so that nothing needs to be compensated.
    fn outputs(&self, every: usize) -> Vec<Vec<f64>> {
        let mut outputs = vec![Vec::new(); self.tokens.div_ceil(every)];
        for h in 0..HEADS {
            let row = |x: &[f32], t: usize| -> [f64; DIM] {
                std::array::from_fn(|d| f64::from(x[(h * self.tokens + t) * DIM + d]))
            };
            let q: [f64; DIM] = std::array::from_fn(|d| f64::from(self.q[h * DIM + d]));
            let mut all = Sums { max: f64::NEG_INFINITY, sum: 0.0, weighted: [0.0; DIM] };
            for t in 0..self.tokens {
                let (k, v) = (row(&self.k, t), row(&self.v, t));
                let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                let score = f64::from(Stream::config().scale_for(DIM) as f32) * dot;
                let top = all.max.max(score);
                let (kept, own) = ((all.max - top).exp(), (score - top).exp());
                all.sum = all.sum * kept + own;
                for (w, v) in all.weighted.iter_mut().zip(v) {
                    *w = *w * kept + own * v;
                }
                all.max = top;
                if (t + 1) % every == 0 || t + 1 == self.tokens {
                    outputs[t / every].extend(all.weighted.map(|w| w / all.sum));
                }
            }
        }
        outputs
    }
}

/// 100,000 tokens in blocks, with their outputs, and folded without: 1e-5 without any compensation. The
/// device's memory stays as it is, and so does the state.
#[test]
fn blocks_of_a_hundred_thousand_tokens() {
    let Some(gpu) = open() else { return };
    let (tokens, block) = (100_000, 1000);
    let stream = Stream::new(tokens, 5);
    let [q, k, v] = stream.upload(&gpu);
    let aaren = Aaren::new(&gpu, Stream::config()).unwrap();
    let empty = State::empty(&gpu, 1, HEADS, DIM).unwrap();
    let (mut state, mut folded) = (empty.clone(), empty.clone());
    let (mut sampled, mut in_use) = (Vec::new(), Vec::new());
    for start in (0..tokens).step_by(block) {
        let part = |x: &Tensor| x.narrow(2, start, block).unwrap();
        let (k, v) = (part(&k), part(&v));
        let inputs = Inputs::new(&q, &k, &v);
        let output = aaren.decode(&mut state, inputs).unwrap();
        sampled.push(output.out.narrow(2, block - 1, 1).unwrap().contiguous().unwrap());
        aaren.fold(&mut folded, inputs).unwrap();
        gpu.flush().unwrap();
        in_use.push(gpu.memory().in_use - 4 * (sampled.len() * HEADS * DIM) as u64);
    }
    assert_eq!((state.bytes(), folded.bytes()), (empty.bytes(), empty.bytes()));
    let want = stream.outputs(block);
    let errors = sampled.iter().zip(&want).map(|(got, want)| relative_l2(&download(got), want));
    let worst = errors.fold(0.0, f64::max);
    let last = relative_l2(&download(&state.out().unwrap()), &want[tokens / block - 1]);
    let by_fold = relative_l2(&download(&folded.out().unwrap()), &want[tokens / block - 1]);
    println!("blocks of {block}: {worst:.1e} at worst, {last:.1e} and {by_fold:.1e} at the end");
    assert!(worst <= 1e-5 && last <= 1e-5 && by_fold <= 1e-5);
    // What is sampled lies in buffers of at least some hundred bytes.
    let grown = in_use[in_use.len() - 1].saturating_sub(in_use[1]);
    assert!(grown <= 100 * 1024, "{grown} bytes more: {in_use:?}");

    // The scan of everything at once.
    let whole = aaren.forward(Inputs::new(&q, &k, &v)).unwrap();
    for (i, want) in want.iter().enumerate() {
        let row = whole.out.narrow(2, (i + 1) * block - 1, 1).unwrap();
        assert!(relative_l2(&download(&row), want) <= 1e-5, "{i}");
    }
}

/// Token by token rounding adds up: 2e-4 over 100,000 tokens by the specification.
#[test]
fn token_by_token() {
    let Some(gpu) = gpu() else { return };
    let (tokens, every) = (100_000, 1000);
    let stream = Stream::new(tokens, 6);
    let [q, k, v] = stream.upload(&gpu);
    let aaren = Aaren::new(&gpu, Stream::config()).unwrap();
    let mut state = State::empty(&gpu, 1, HEADS, DIM).unwrap();
    let want = stream.outputs(every);
    let mut worst = 0.0_f64;
    for t in 0..tokens {
        let part = |x: &Tensor| x.narrow(2, t, 1).unwrap();
        let (k, v) = (part(&k), part(&v));
        aaren.fold(&mut state, Inputs::new(&q, &k, &v)).unwrap();
        if (t + 1) % every == 0 {
            let got = download(&state.out().unwrap());
            worst = worst.max(relative_l2(&got, &want[t / every]));
        }
    }
    println!("token by token: {worst:.1e} at worst");
    assert!(worst <= 2e-4, "{worst:e}");
}

#[test]
fn smoke_streams_are_the_whole_text() {
    let Some(gpu) = gpu() else { return };
    let shape = Shape { batch: 2, heads: 4, heads_kv: 2, tokens: 71, dim_qk: 6, dim_v: 5 };
    let data = Data::new(shape, true, true, 4);
    let config = Config::new().with_scale(2.0);
    let want = data.run(None, &config);
    let aaren = Aaren::new(&gpu, config).unwrap();
    let q = upload(&gpu, &data.q.index_axis(ndarray::Axis(0), 0).to_owned());
    let empty = State::empty(&gpu, 2, 4, 5).unwrap();
    let (mut state, mut merged) = (empty.clone(), empty.clone());
    let mut start = 0;
    for cut in [1, 2, 2, 9, 50, 71] {
        let part = data.part(start, cut);
        let (k, v) = (upload(&gpu, &part.k), upload(&gpu, &part.v));
        let valid = part.valid.unwrap().mapv(u32::from);
        let valid = Tensor::from_array(&gpu, &valid.view().into_dyn()).unwrap();
        let inputs = Inputs::new(&q, &k, &v).with_valid(&valid);
        let output = aaren.decode(&mut state, inputs).unwrap();
        let rows = want.out.slice(s![.., .., start..cut, ..]);
        for (got, want) in download(&output.out).iter().zip(rows) {
            assert!((got - want).abs() < 1e-5, "{got} and not {want}");
        }
        let (_, own) = aaren.prefill(inputs).unwrap();
        merged = merged.merge(&own).unwrap();
        start = cut;
        // A state that is saved and read is the same to the bit.
        let name = format!("attn-aaren-device-{}-{cut}.safetensors", std::process::id());
        let path = std::env::temp_dir().join(name);
        state.save(&path).unwrap();
        let loaded = State::load(&gpu, &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(loaded.read().unwrap(), state.read().unwrap());
        state = loaded;
    }
    let want = want.state.out();
    for state in [&state, &merged, &empty.merge(&state).unwrap(), &state.merge(&empty).unwrap()] {
        for (got, want) in download(&state.out().unwrap()).iter().zip(&want) {
            assert!((got - want).abs() < 1e-5, "{got} and not {want}");
        }
        assert_eq!(state.bytes(), empty.bytes());
    }
}

/// 70,000 tokens at once, as a prompt, and some more behind them.
#[test]
fn a_long_prompt() {
    let Some(gpu) = gpu() else { return };
    let tokens = 70_001;
    let stream = Stream::new(tokens, 7);
    let [q, k, v] = stream.upload(&gpu);
    let aaren = Aaren::new(&gpu, Stream::config()).unwrap();
    let part = |from, len| [&k, &v].map(|x| x.narrow(2, from, len).unwrap());
    let [first_k, first_v] = part(0, tokens - 5);
    let (_, mut state) = aaren.prefill(Inputs::new(&q, &first_k, &first_v)).unwrap();
    let [rest_k, rest_v] = part(tokens - 5, 5);
    let output = aaren.decode(&mut state, Inputs::new(&q, &rest_k, &rest_v)).unwrap();
    let last = download(&output.out.narrow(2, 4, 1).unwrap());
    let error = relative_l2(&last, &stream.outputs(tokens)[0]);
    println!("{tokens} tokens: {error:.1e}");
    assert!(error <= 1e-5);
}
