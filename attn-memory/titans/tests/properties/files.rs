//! Calls and files that are wrong.

use attn_core::Error;
use attn_titans::reference::{Cotangents, State, backward, forward, layer, read, read_backward};
use attn_titans::{Combination, Config, LayerConfig};
use ndarray::{Array2, Array3, Array4, s};

use crate::support::{Data, combinations, layer};

fn message<T>(result: Result<T, Error>) -> String {
    result.err().map_or_else(|| "no error".to_owned(), |error| error.to_string())
}

#[test]
fn parameters_out_of_range() {
    let good = Config::deep(2, 4, 8);
    let change = |change: fn(&mut Config)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    assert!(good.validate().is_ok());
    for (config, part) in [
        (change(|config| config.heads = 0), "`heads` is 0"),
        (change(|config| config.dim_qk = 0), "`dim_qk` is 0"),
        (change(|config| config.dim_v = 0), "`dim_v` is 0"),
        (change(|config| config.hidden = Some(0)), "`hidden` is 0"),
        (change(|config| config.chunk = 0), "`chunk` is 0"),
        (change(|config| config.coefficient = -1.0), "`coefficient` is -1"),
        (change(|config| config.coefficient = f64::NAN), "`coefficient` is NaN"),
        (change(|config| config.max_grad_norm = Some(0.0)), "`max_grad_norm` is 0"),
    ] {
        let got = message(config.validate());
        assert!(got.contains(part), "{got}");
        let got = message(State::from_parts(Vec::new(), Vec::new(), &config));
        assert!(got.contains(part), "{got}");
    }
    for combination in combinations(0) {
        let zero = !matches!(combination, Combination::Alone);
        assert_eq!(LayerConfig::new(good.clone(), combination).validate().is_err(), zero);
    }
    let mut config = LayerConfig::new(good, Combination::Alone).with_theta_max(-0.1);
    assert!(message(config.validate()).contains("`theta_max` is -0.1"));
    (config.theta_max, config.rms_epsilon) = (0.1, 0.0);
    assert!(message(config.validate()).contains("`rms_epsilon` is 0"));
}

#[test]
fn smoke_tensors_that_do_not_fit() {
    let config = Config::deep(2, 3, 4).with_dim_v(5);
    let data = Data::new(2, 6, &config, 1);
    let state = data.state(&config);
    let call = |change: fn(&mut Data)| {
        let mut data = data.clone();
        change(&mut data);
        message(forward(data.inputs(), &state, &config))
    };
    for (got, part) in [
        (call(|data| data.q = Array4::zeros((2, 2, 6, 4))), "`q` has shape [2, 2, 6, 4]"),
        (call(|data| data.k = Array4::zeros((2, 2, 5, 3))), "`k` has shape [2, 2, 5, 3]"),
        (call(|data| data.v = Array4::zeros((2, 2, 6, 3))), "`v` has shape [2, 2, 6, 3]"),
        (call(|data| data.eta = Array3::zeros((2, 1, 6))), "`eta` has shape [2, 1, 6]"),
        (
            message(forward(data.inputs(), &Data::new(1, 0, &config, 1).state(&config), &config)),
            "`state.w`",
        ),
        (message(State::from_parts(data.w[..1].to_vec(), data.s.clone(), &config)), "2 layers"),
        (message(State::from_parts(data.w.clone(), data.s[..1].to_vec(), &config)), "2 layers"),
        (message(read(data.v.view(), &state, &config)), "`q` has shape"),
        (message(read_backward(data.q.view(), &state, &config, data.q.view())), "`d_y` has shape"),
        (
            message(backward(data.inputs(), &state, &config, Cotangents::new(data.q.view()))),
            "`cotangents.y`",
        ),
        (
            message(backward(
                data.inputs(),
                &state,
                &config,
                Cotangents::new(data.v.view()).with_state(&data.w[1..], &data.s),
            )),
            "`cotangents.w`",
        ),
    ] {
        assert!(got.contains(part), "{got}: {part}");
    }
    let learned: Vec<Array3<f64>> =
        data.w.iter().map(|w| w.slice(s![0, ..1, .., ..]).to_owned()).collect();
    let learned: Vec<_> = learned.iter().map(|w| w.view()).collect();
    assert!(message(State::new(&learned, 2, &config)).contains("`state.w`"));
    // A position that other chunks have room for.
    let mut long = state;
    attn_titans::reference::decode(&mut long, data.inputs(), &config).unwrap();
    let short = config.clone().with_chunk(4);
    assert!(message(forward(data.inputs(), &long, &short)).contains("`state.position` holds 6"));
}

#[test]
fn weights_that_do_not_fit() {
    let gate = Combination::Gate { window: 3 };
    let (weights, config) = layer(gate, 2, 1, Some(4), 1);
    let x = Array3::zeros((1, 4, 6));
    let call = |change: fn(&mut layer::Weights)| {
        let mut weights = weights.clone();
        change(&mut weights);
        message(layer::forward(x.view(), &weights, &config))
    };
    for (got, part) in [
        (call(|weights| weights.projections[1] = Array2::zeros((5, 6))), "`w_k` has shape [5, 6]"),
        (call(|weights| weights.conv.as_mut().unwrap()[2] = Array2::zeros((3, 6))), "`conv_v`"),
        (call(|weights| weights.conv.as_mut().unwrap()[0] = Array2::zeros((0, 6))), "`conv_q`"),
        (call(|weights| weights.gates[2].g = Array2::zeros((3, 6))), "`g_alpha`"),
        (call(|weights| weights.memory.truncate(1)), "`m_w` is 1"),
        (call(|weights| weights.memory[1] = Array3::zeros((2, 3, 4))), "`m_w1`"),
        (call(|weights| weights.persistent = Array2::zeros((1, 5))), "`persist`"),
        (call(|weights| weights.attention = None), "`attention` is none, expected some"),
        (call(|weights| weights.readout = None), "`readout` is none, expected some"),
        (call(|weights| weights.norms = None), "`norms` is none, expected some"),
        (call(|weights| weights.attention.as_mut().unwrap().o = Array2::zeros((6, 4))), "`a_o`"),
        (
            call(|weights| weights.readout.as_mut().unwrap().gain = ndarray::Array1::zeros(5)),
            "`g_out`",
        ),
        (message(layer::forward(Array3::zeros((1, 4, 5)).view(), &weights, &config)), "`x`"),
        (
            message(layer::backward(x.view(), &weights, Array3::zeros((1, 3, 6)).view(), &config)),
            "`d_out`",
        ),
    ] {
        assert!(got.contains(part), "{got}: {part}");
    }
}

/// Weights to be filled fit, in any combination, and nothing but gains is not 0.
#[test]
fn weights_to_be_filled() {
    let memory = Config::deep(2, 3, 5).with_dim_v(4);
    for combination in combinations(4) {
        let config = LayerConfig::new(memory.clone(), combination);
        for (kernel, persistent) in [(0, 0), (3, 2)] {
            let weights = layer::Weights::new(&config, 8, kernel, persistent).unwrap();
            let x = Array3::zeros((1, 2, 8));
            let out = layer::forward(x.view(), &weights, &config).unwrap().out;
            assert!(out.iter().all(|&out| out == 0.0));
            assert_eq!(weights.conv.map_or(0, |conv| conv[2].nrows()), kernel);
        }
        assert!(message(layer::Weights::new(&config, 0, 1, 1)).contains("`d_model` is 0"));
    }
    let context = LayerConfig::new(memory, Combination::Context { segment: 4 });
    assert!(message(layer::Weights::new(&context, 6, 1, 1)).contains("heads * dim_v is d_model"));
}

#[test]
fn damaged_files() {
    let config = Config::deep(1, 2, 3).with_chunk(4);
    let data = Data::new(1, 3, &config, 1);
    let state = forward(data.inputs(), &data.state(&config), &config).unwrap().state;
    let path = std::env::temp_dir().join(format!("attn-titans-damaged-{}", std::process::id()));
    state.save(&path).unwrap();
    assert!(message(State::load(&path, &Config::linear(1, 2))).contains("`config.depth` is 1"));
    assert!(
        message(State::load(&path, &config.clone().with_chunk(2))).contains("`state.position`")
    );
    let wide = Config::deep(1, 2, 4).with_chunk(4);
    assert!(message(State::load(&path, &wide)).contains("`state.w`"));
    let bytes = std::fs::read(&path).unwrap();
    for end in (0..bytes.len()).step_by(7) {
        std::fs::write(&path, &bytes[..end]).unwrap();
        assert!(State::load(&path, &config).is_err(), "{end} bytes");
        assert!(layer::Weights::load(&path, "").is_err(), "{end} bytes");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(message(layer::Weights::load(&path, "")).contains("no array `w_q`"));
    let (weights, _) = layer(Combination::Alone, 0, 0, None, 1);
    weights.save(&path).unwrap();
    assert!(message(State::load(&path, &config)).contains("its kind is `attn-titans weights`"));
    assert!(message(layer::Weights::load(&path, "layer.")).contains("no array `layer.w_q`"));
    std::fs::remove_file(&path).unwrap();
    assert!(State::load(&path, &config).is_err());
}

/// A restart begins a chunk where it is, at weights as they are.
#[test]
fn restarts() {
    let config = Config::deep(1, 3, 4).with_chunk(5);
    let data = Data::new(1, 3, &config, 2);
    let mut state = forward(data.inputs(), &data.state(&config), &config).unwrap().state;
    assert_eq!(state.position(), 3);
    assert_ne!(state.chunk_start(), state.w());
    state.restart();
    assert_eq!((state.position(), state.chunk_start()), (0, state.w()));
    assert_eq!(state, State::from_parts(state.w().to_vec(), state.s().to_vec(), &config).unwrap());
    assert_eq!(state.bytes(), 3 * (3 * 4 + 4 * 3) * 8);
}
