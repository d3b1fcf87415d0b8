//! Streams: cut anywhere, saved anywhere, merged.

use attn_aaren::Config;
use attn_aaren::reference::{State, prefill};
use attn_core::Error;
use ndarray::{Array2, Array3, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, bits, close, shape};

fn path(name: &str, seed: u64) -> std::path::PathBuf {
    let file = format!("attn-aaren-{}-{name}-{seed}.safetensors", std::process::id());
    std::env::temp_dir().join(file)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn streams_are_the_whole_text(
        shape in shape(),
        masked in any::<bool>(),
        cuts in prop::collection::vec(0.0..1.0_f64, 0..6),
        seed in any::<u64>(),
    ) {
        let data = Data::new(shape, true, masked, seed);
        let config = Config::new().with_scale(3.0);
        let whole = data.run(None, &config);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * shape.tokens as f64) as usize).collect();
        cuts.push(shape.tokens);
        cuts.sort_unstable();
        let empty = State::new(shape.batch, shape.heads, shape.dim_v);
        let (mut decoded, mut folded, mut merged) = (empty.clone(), empty.clone(), empty.clone());
        let mut start = 0;
        for cut in cuts {
            let part = data.part(start, cut);
            let output = decoded.decode(part.inputs(), &config).unwrap();
            // One after the other is the same arithmetic, however it is cut.
            let rows = s![.., .., start..cut, ..];
            prop_assert_eq!(&output.out, &whole.out.slice(rows));
            folded.fold(part.inputs(), &config).unwrap();
            let (_, own) = prefill(part.inputs(), &config).unwrap();
            merged = merged.merge(&own).unwrap();
            start = cut;
        }
        prop_assert_eq!(&decoded, &whole.state);
        for state in [&folded, &merged] {
            close("max", &state.max(), &whole.state.max(), 0.0);
            close("sum", &state.sum(), &whole.state.sum(), 1e-13);
            close("weighted", &state.weighted(), &whole.state.weighted(), 1e-13);
        }
        prop_assert_eq!(decoded.bytes(), empty.bytes());
    }

    /// The laws of a monoid: the empty state changes nothing, and brackets make no difference.
    #[test]
    fn states_merge_in_any_brackets(shape in shape(), seed in any::<u64>()) {
        let config = Config::new().with_scale(5.0);
        let state = |seed| Data::new(shape, false, true, seed).run(None, &config).state;
        let (a, b, c) = (state(seed), state(seed ^ 1), state(seed ^ 2));
        let empty = State::new(shape.batch, shape.heads, shape.dim_v);
        prop_assert_eq!(&empty.merge(&a).unwrap(), &a);
        prop_assert_eq!(&a.merge(&empty).unwrap(), &a);
        let left = a.merge(&b).unwrap().merge(&c).unwrap();
        let right = a.merge(&b.merge(&c).unwrap()).unwrap();
        let other_way = c.merge(&b).unwrap().merge(&a).unwrap();
        for state in [&right, &other_way] {
            close("lse", &state.lse(), &left.lse(), 1e-13);
            close("out", &state.out(), &left.out(), 1e-13);
        }
    }

    #[test]
    fn saved_streams_go_on_bit_for_bit(shape in shape(), seed in any::<u64>()) {
        let data = Data::new(shape, true, true, seed);
        let config = Config::new();
        let cut = shape.tokens / 3;
        let mut state = data.part(0, cut).run(None, &config).state;
        let path = path("state", seed);
        state.save(&path).unwrap();
        let mut loaded = State::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        prop_assert_eq!(&loaded, &state);
        let rest = data.part(cut, shape.tokens);
        let want = state.decode(rest.inputs(), &config).unwrap();
        let got = loaded.decode(rest.inputs(), &config).unwrap();
        prop_assert_eq!(bits(&got.out), bits(&want.out));
        prop_assert_eq!(&loaded, &state);
    }

    #[test]
    fn states_are_what_their_parts_say(shape in shape(), seed in any::<u64>()) {
        let data = Data::new(shape, true, true, seed);
        let state = data.run(None, &Config::new()).state;
        // Files and devices have a finite number in place of -inf.
        let max = state.max().mapv(|max| max.max(-3.0e38));
        let again = State::from_parts(max.view(), state.sum().view(), state.weighted().view()).unwrap();
        close("lse", &again.lse(), &state.lse(), 1e-15);
        close("out", &again.out(), &state.out(), 1e-15);
    }
}

#[test]
fn files_of_something_else_are_errors() {
    let shape = Shape { batch: 1, heads: 2, heads_kv: 2, tokens: 3, dim_qk: 2, dim_v: 2 };
    let state = Data::new(shape, true, false, 1).run(None, &Config::new()).state;
    let path = path("damaged", 0);
    state.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 8, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(State::load(&path), Err(Error::File { .. })), "{len} bytes");
    }
    attn_core::ArrayFile::new("another state").write(&path).unwrap();
    assert!(State::load(&path).unwrap_err().to_string().contains("kind"));
    let max = Array2::<f64>::zeros((1, 2));
    let file = attn_core::ArrayFile::new("attn-aaren state");
    let file =
        file.with("max", max.view()).with("weighted", Array3::<f64>::zeros((1, 2, 2)).view());
    file.clone().write(&path).unwrap();
    assert!(State::load(&path).unwrap_err().to_string().contains("no array `sum`"));
    file.with("sum", max.view()).write(&path).unwrap();
    assert!(State::load(&path).unwrap_err().to_string().contains("sums above 0"));
    std::fs::remove_file(&path).unwrap();
}
