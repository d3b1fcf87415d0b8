//! Counter-based random numbers: a number is a pure function of (seed, stream, index), so that any
//! element of any tensor can be made without the ones before it, in any order, on any thread.
//!
//! The generator is SplitMix64 read at random: the 64-bit state of a stream is a hash of seed and
//! stream, and number `index` is the finaliser applied to the state after `index + 1` steps of the
//! golden-ratio increment.

use std::f64::consts::TAU;

const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// 64 random bits.
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    let state = mix(mix(seed.wrapping_add(GOLDEN_RATIO)).wrapping_add(stream));
    mix(state.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_RATIO)))
}

/// Uniform in [0, 1), a multiple of 2^-53.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 * (-53_f64).exp2()
}

/// Normal with mean 0 and variance 1 (Box-Muller: elements `2 n` and `2 n + 1` are the cosine and
/// the sine of one pair). Equal on every machine up to the rounding of its `ln`, `cos` and `sin`.
pub fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let pair = index & !1;
    // 1 - uniform is never 0, which has no logarithm.
    let radius = (-2.0 * (1.0 - uniform(seed, stream, pair)).ln()).sqrt();
    let angle = TAU * uniform(seed, stream, pair | 1);
    radius * if index == pair { angle.cos() } else { angle.sin() }
}

/// The finaliser of SplitMix64, a bijection.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 100_000_u64;
        let mean = |f: &dyn Fn(u64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        assert!((mean(&|i| uniform(1, 2, i)) - 0.5).abs() < 0.005);
        assert!(mean(&|i| normal(1, 2, i)).abs() < 0.01);
        assert!((mean(&|i| normal(1, 2, i).powi(2)) - 1.0).abs() < 0.02);
        assert!((mean(&|i| normal(1, 2, i).powi(4)) - 3.0).abs() < 0.2);
        assert!(mean(&|i| normal(1, 2, i) * normal(1, 2, i + 1)).abs() < 0.01, "neighbours");
        assert!(mean(&|i| normal(1, 2, i) * normal(1, 3, i)).abs() < 0.01, "streams");
        assert!(mean(&|i| normal(1, 2, i) * normal(2, 2, i)).abs() < 0.01, "seeds");
    }

    #[test]
    fn the_first_numbers_of_seed_0_never_change() {
        let first: Vec<u64> = (0..3).map(|i| bits(0, 0, i)).collect();
        assert_eq!(first, FIRST);
    }

    const FIRST: [u64; 3] =
        [6_235_967_106_033_911_276, 4_964_577_235_801_436_555, 5_009_519_748_041_543_987];
}
