//! Without momentum, from weights of 0 and within one chunk, a linear memory is the attention of attn-lightning:
//! what is kept of a token is its decay, and a step times the coefficient scales a value.

use attn_core::testing::compare;
use attn_lightning::{self as lightning, Lightning, Slopes};
use attn_titans::reference::{forward, forward_chunked};
use attn_titans::{Config, State, Titans};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Axis};
use proptest::prelude::*;

use crate::device::{RELATIVE_L2, download, inputs, upload};
use crate::support::{Data, close, tokens};

/// Another order of sums, in f64.
const ROUNDING: f64 = 1e-13;

/// A memory of these tokens, and the values and decays of the same attention.
fn both(tokens: usize, keep: f64, seed: u64) -> (Config, Data, Array4<f64>, lightning::Config) {
    let config = Config::linear(2, 12).with_dim_v(8).with_chunk(64);
    let mut data = Data::new(2, tokens, &config, seed);
    data.eta.fill(0.0);
    data.alpha.fill(1.0 - keep);
    data.w[0].fill(0.0);
    data.s[0].fill(0.0);
    let values = &data.v * &(&data.theta * config.coefficient).insert_axis(Axis(3));
    let slopes = Slopes::Given(vec![-(1.0 - (1.0 - keep)).ln(); 2]);
    (config, data, values, lightning::Config::new(2).with_slopes(slopes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_memory_without_momentum_is_lightning_attention(
        tokens in tokens(),
        keep in 0.5..=1.0_f64,
        seed in any::<u64>(),
    ) {
        let (config, data, values, decays) = both(tokens, keep, seed);
        let given = lightning::reference::Inputs::new(data.q.view(), data.k.view(), values.view());
        let want = lightning::reference::forward(given, &decays).unwrap();
        for form in [forward, forward_chunked] {
            let got = form(data.inputs(), &data.state(&config), &config).unwrap();
            close("out", &got.y, &want.out, ROUNDING);
        }
    }
}

/// Both crates' kernels.
#[test]
fn both_are_the_same_on_a_device() {
    let Some(gpu) = gpu() else { return };
    let (config, data, values, decays) = both(64, 0.9, 3);
    let state = State::upload(&gpu, &data.state(&config)).unwrap();
    let titans = Titans::new(&gpu, config).unwrap();
    let got = titans.forward(inputs(&gpu, &data).inputs(), &state).unwrap().y;
    let [q, k, v] = [&data.q, &data.k, &values].map(|x| upload(&gpu, x));
    let attention = Lightning::new(&gpu, decays).unwrap();
    let want = attention.forward(lightning::Inputs::new(&q, &k, &v)).unwrap().out;
    let want: Vec<f64> = download(&want).iter().map(|&x| f64::from(x)).collect();
    let error = compare(download(&got).as_slice().unwrap(), &want).rel_l2;
    assert!(error <= RELATIVE_L2, "{error:e}");
}
