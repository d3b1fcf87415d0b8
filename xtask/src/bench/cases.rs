//! The problems of a run: layers of a captured model under several masks, and random problems by name.

use anyhow::{Result, bail};
use attn_core::dense::Config;
use attn_core::testing::{Capture, HostInputs, Values, problems};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::bench::STREAM_TOKENS;

use super::report::Source;

/// Random problems that run by default: those that the project's speed is judged by.
const DEFAULT: [&str; 5] = [
    "smollm2-prefill-2k",
    "smollm2-full-2k",
    "smollm2-decode-2k",
    "smollm2-decode-8k",
    "d128-prefill-2k",
];

/// Lengths of the plots: of the captured sequence by default, and of one random head in full runs.
const SERIES: [usize; 4] = [128, 256, 512, 1024];
const FULL_SERIES: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16 << 10, 32 << 10];

/// Lengths of texts whose last tokens are read one by one, in full runs.
const STREAM_SERIES: [usize; 5] = [512, 2048, 8192, 32 << 10, 64 << 10];

/// A window of 256 tokens.
const WINDOW: Mask = Mask::Window { left: 255, right: 0 };

/// From so many keys on, one head stands for all.
pub const ONE_HEAD: usize = 16 << 10;

/// One problem with its inputs.
pub struct Case {
    pub name: String,
    pub source: Source,
    pub inputs: HostInputs,
    pub config: Config,
    /// Whether it is a point of the plots over the number of keys.
    pub in_series: bool,
    /// Whether the last tokens come one by one: problems of their own for mechanisms that can do so.
    pub is_stream: bool,
}

impl Case {
    fn new(name: String, source: Source, inputs: HostInputs, config: Config) -> Self {
        let inputs = if inputs.shape.keys < ONE_HEAD { inputs } else { one_head(&inputs) };
        Case { name, source, inputs, config, in_series: false, is_stream: false }
    }

    /// The same on the model's own mask or a window, as points of the plots.
    fn series(name: &str, source: Source, inputs: &HostInputs, own: &Config) -> Vec<Case> {
        let masks = [own.mask.clone(), WINDOW];
        let case = |mask| Case {
            in_series: true,
            ..Case::new(name.into(), source.clone(), inputs.clone(), own.clone().with_mask(mask))
        };
        masks.into_iter().map(case).collect()
    }

    /// The last tokens of a text, one by one.
    fn stream(name: String, shape: AttentionShape) -> Case {
        let seed = shape.keys as u64;
        let inputs = HostInputs::random(shape, seed, Values::Normal);
        let config = Config::new().with_mask(Mask::Causal);
        let case = Case::new(name, Source::Random { seed }, inputs, config);
        Case { in_series: true, is_stream: true, ..case }
    }

    /// Whether it is so long that fewer samples have to do.
    pub fn is_long(&self) -> bool {
        self.inputs.shape.keys >= ONE_HEAD
    }
}

/// What to run.
pub struct Choice<'a> {
    /// One layer and its own mask, no random problems.
    pub quick: bool,
    /// All random problems.
    pub full: bool,
    /// Parts of names; if there is one, only problems that contain any of them.
    pub only: &'a [String],
    /// Whether there may be none, as the names are those of general kernels.
    pub or_none: bool,
}

/// The problems of a run.
pub fn cases(capture: &Capture, choice: &Choice<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut known = Vec::new();
    let mut wanted = |name: &str, by_default: bool| {
        known.push(name.to_string());
        match choice.only {
            [] => by_default,
            only => only.iter().any(|part| name.contains(part.as_str())),
        }
    };
    let own = capture.config();
    let layers = || capture.layers().filter_map(|layer| Some((layer, capture.layer(layer)?)));
    for (index, (layer, inputs)) in layers().enumerate() {
        let source = Source::Capture { layer };
        let name = |keys| format!("layer{layer}-n{keys}");
        check_finite(&name(inputs.shape.keys), inputs)?;
        for keys in SERIES.into_iter().filter(|&keys| keys < inputs.shape.keys) {
            if index == 0 && wanted(&name(keys), !choice.quick) {
                let inputs = inputs.truncated(keys);
                cases.extend(Case::series(&name(keys), source.clone(), &inputs, own));
            }
        }
        let name = name(inputs.shape.keys);
        if !wanted(&name, index == 0 || !choice.quick) {
            continue;
        }
        // Other masks on the first layer are enough to see what they cost.
        for mask in masks(&own.mask, index == 0 && !choice.quick || choice.full) {
            let in_series = index == 0 && (mask == own.mask || mask == WINDOW);
            let config = own.clone().with_mask(mask);
            let case = Case::new(name.clone(), source.clone(), inputs.clone(), config);
            cases.push(Case { in_series, ..case });
        }
    }
    if let Some((_, inputs)) = layers().next() {
        let one = one_head(inputs).shape;
        for keys in FULL_SERIES {
            let name = format!("head-n{keys}");
            if wanted(&name, choice.full) {
                let (shape, seed) = (AttentionShape { queries: keys, keys, ..one }, keys);
                let inputs = HostInputs::random(shape, seed as u64, Values::Normal);
                let source = Source::Random { seed: seed as u64 };
                cases.extend(Case::series(&name, source, &inputs, own));
            }
        }
        for keys in STREAM_SERIES {
            let name = format!("stream-n{keys}");
            if wanted(&name, choice.full) {
                let shape = AttentionShape { queries: STREAM_TOKENS, keys, ..one };
                cases.push(Case::stream(name, shape));
            }
        }
    }
    for Named { name, shape, config, seed } in named() {
        let by_default = choice.full || DEFAULT.contains(&name);
        if wanted(name, by_default && !choice.quick) {
            let inputs = HostInputs::random(shape, seed, Values::Normal);
            cases.push(Case::new(name.into(), Source::Random { seed }, inputs, config));
        }
    }
    if cases.is_empty() && !choice.or_none {
        bail!("no problem is called so; there are {}", known.join(", "));
    }
    Ok(cases)
}

/// A random problem.
struct Named {
    name: &'static str,
    shape: AttentionShape,
    config: Config,
    seed: u64,
}

/// The named problems that tests use too, and those that are for speed alone.
fn named() -> Vec<Named> {
    let shared = problems().into_iter().map(|problem| Named {
        name: problem.name,
        shape: problem.shape,
        config: problem.config,
        seed: problem.seed,
    });
    let mut all: Vec<_> = shared.collect();
    // Long enough that reading keys and values is all that counts.
    let long = all.iter().find(|problem| problem.name == "smollm2-decode-2k").map(|short| Named {
        name: "smollm2-decode-8k",
        shape: AttentionShape { keys: 8192, ..short.shape },
        config: short.config.clone(),
        seed: 100,
    });
    all.extend(long);
    all
}

/// The model's own mask, and perhaps two others on the same inputs.
fn masks(own: &Mask, others: bool) -> Vec<Mask> {
    let mut masks = vec![own.clone()];
    if others {
        let others = [Mask::Full, WINDOW];
        masks.extend(others.into_iter().filter(|mask| mask != own));
    }
    masks
}

/// With such numbers in the inputs, results mean nothing and nothing can be compared.
fn check_finite(name: &str, inputs: &HostInputs) -> Result<()> {
    for (tensor, data) in [("q", &inputs.q), ("k", &inputs.k), ("v", &inputs.v)] {
        if let Some(at) = data.iter().position(|x| !x.is_finite()) {
            bail!("{name}: element {at} of {tensor} is {}, expected finite numbers", data[at]);
        }
    }
    Ok(())
}

fn one_head(inputs: &HostInputs) -> HostInputs {
    let shape = AttentionShape {
        batch: inputs.shape.batch.min(1),
        heads: inputs.shape.heads.min(1),
        heads_kv: inputs.shape.heads_kv.min(1),
        ..inputs.shape
    };
    let first = |data: &[f32], shape: [usize; 4]| data[..shape.iter().product()].to_vec();
    HostInputs {
        shape,
        q: first(&inputs.q, shape.q()),
        k: first(&inputs.k, shape.k()),
        v: first(&inputs.v, shape.v()),
        sinks: inputs.sinks.as_ref().map(|sinks| sinks[..shape.heads].to_vec()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    impl Case {
        /// A causal problem of four tokens.
        pub fn for_tests() -> Self {
            let inputs = HostInputs::random(shape(1, 4, 4), 0, Values::Normal);
            let config = Config::new().with_mask(Mask::Causal);
            Case::new("four".into(), Source::Random { seed: 0 }, inputs, config)
        }
    }

    pub fn shape(heads: usize, queries: usize, keys: usize) -> AttentionShape {
        AttentionShape { batch: 1, heads, heads_kv: heads, queries, keys, dim_qk: 8, dim_v: 4 }
    }

    /// The file that comes with this crate.
    fn capture() -> Capture {
        let dir = env!("CARGO_MANIFEST_DIR");
        Capture::load(format!("{dir}/data/smollm2-moby-1024.safetensors")).unwrap()
    }

    #[test]
    fn shipped_capture() {
        let capture = capture();
        assert_eq!(capture.layers().collect::<Vec<_>>(), [11, 18]);
        assert_eq!(capture.config().mask, Mask::Causal);
        let shape = capture.layer(11).unwrap().shape;
        assert_eq!((shape.q(), shape.v()), ([1, 9, 1024, 64], [1, 3, 1024, 64]));
    }

    #[test]
    fn choices() {
        let capture = capture();
        let names = |quick, full, only: &[&str]| {
            let only: Vec<_> = only.iter().map(|part| part.to_string()).collect();
            let chosen = cases(&capture, &Choice { quick, full, only: &only, or_none: false })?;
            anyhow::Ok(chosen.into_iter().map(|case| case.name).collect::<Vec<_>>())
        };
        assert_eq!(names(true, false, &[]).unwrap(), ["layer11-n1024"]);
        let series = 2 * (SERIES.len() - 1);
        let default = 3 + 1 + series + DEFAULT.len();
        assert_eq!(names(false, false, &[]).unwrap().len(), default);
        let long = 2 * FULL_SERIES.len() + STREAM_SERIES.len();
        let all = 2 * 3 + series + long + named().len();
        assert_eq!(names(false, true, &[]).unwrap().len(), all);
        assert_eq!(names(false, false, &["tiny-odd", "decode"]).unwrap().len(), 4);
        let error = names(false, false, &["no-such"]).unwrap_err().to_string();
        assert!(error.contains("layer18-n1024") && error.contains("tiny-one"), "{error}");
    }

    #[test]
    fn series_double_in_length() {
        let choice = Choice { quick: false, full: true, only: &[], or_none: false };
        let cases = cases(&capture(), &choice).unwrap();
        let whole = cases.iter().filter(|case| case.in_series && !case.is_stream);
        let causal = whole.filter(|case| case.config.mask == Mask::Causal);
        let (one, all): (Vec<_>, Vec<_>) =
            causal.map(|case| case.inputs.shape).partition(|shape| shape.heads == 1);
        let lengths = |shapes: &[AttentionShape]| shapes.iter().map(|s| s.keys).collect::<Vec<_>>();
        assert_eq!(lengths(&all), [128, 256, 512, 1024]);
        assert_eq!(lengths(&one), [512, 1024, 2048, 4096, 8192, 16384, 32768]);
    }

    #[test]
    fn long_sequences_have_one_head() {
        let inputs = HostInputs::random(shape(3, 1, ONE_HEAD), 0, Values::Normal);
        let case = Case::new(String::new(), Source::Random { seed: 0 }, inputs, Config::new());
        assert!(case.is_long());
        assert_eq!(case.inputs.shape, shape(1, 1, ONE_HEAD));
        assert!(case.inputs.to_f64().is_ok());
    }

    #[test]
    fn unusable_numbers_are_refused() {
        let mut inputs = HostInputs::random(shape(1, 2, 2), 0, Values::Normal);
        assert!(check_finite("x", &inputs).is_ok());
        inputs.k[5] = f32::NAN;
        let error = check_finite("x", &inputs).unwrap_err().to_string();
        assert_eq!(error, "x: element 5 of k is NaN, expected finite numbers");
    }
}
