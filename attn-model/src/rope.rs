//! Rotary position embeddings: the frequencies, and how long-context scaling changes them.

use std::f64::consts::TAU;

/// Rotary position embedding of one kind of layer.
///
/// Element `i < D/2` of a head of dim `D` is rotated with element `i + D/2` by the angle
/// `position * frequencies(D)[i]`; cosine and sine are multiplied by
/// [`attention_factor`](RopeConfig::attention_factor).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies, above 1.
    pub theta: f64,
    /// How the frequencies are changed for contexts longer than in training.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for long contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by a factor.
    Linear {
        /// The divisor, at least 1.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, with a linear ramp between.
    Llama3 {
        /// Divisor of low frequencies, at least 1.
        factor: f64,
        /// Turns over the original context up to which a frequency is low.
        low_freq_factor: f64,
        /// Turns from which on it is high.
        high_freq_factor: f64,
        /// Context length in training.
        original_context: usize,
    },
    /// As `Llama3`, with the ramp over the index of the frequency and a factor on the logits.
    Yarn {
        /// Divisor of low frequencies, at least 1.
        factor: f64,
        /// Context length in training.
        original_context: usize,
        /// Turns over the original context from which on a frequency is kept.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Factor of cosine and sine; without it `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
}

impl RopeConfig {
    /// The base without scaling.
    pub fn new(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::None }
    }

    /// Angle a position, in radians, of each of the `head_dim / 2` pairs:
    /// `theta^(-2i / head_dim)`, changed by the scaling.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let dim = head_dim as f64;
        let plain = (0..head_dim / 2).map(|i| (i, self.theta.powf(-2.0 * i as f64 / dim)));
        match self.scaling {
            RopeScaling::None => plain.map(|(_, f)| f).collect(),
            RopeScaling::Linear { factor } => plain.map(|(_, f)| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context as f64 / TAU;
                let width = high_freq_factor - low_freq_factor;
                let keep = |f: f64| ((turns * f - low_freq_factor) / width).clamp(0.0, 1.0);
                plain.map(|(_, f)| blend(f, factor, keep(f))).collect()
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
                // The index at which a frequency makes so many turns over the original context.
                let index = |turns: f64| {
                    dim * (original_context as f64 / (TAU * turns)).ln() / (2.0 * self.theta.ln())
                };
                let low = index(beta_fast).floor().max(0.0);
                let high = index(beta_slow).ceil().min(dim - 1.0);
                // A ramp of width 0 is a step.
                let width = if high == low { 0.001 } else { high - low };
                let keep = |i: usize| 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0);
                plain.map(|(i, f)| blend(f, factor, keep(i))).collect()
            }
        }
    }

    /// What cosine and sine are multiplied by: 1, except with YaRN.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { factor, attention_factor, .. } => {
                attention_factor.unwrap_or(0.1 * factor.ln() + 1.0)
            }
            _ => 1.0,
        }
    }
}

/// A frequency of which the part `keep` stays and the rest is divided.
fn blend(frequency: f64, factor: f64, keep: f64) -> f64 {
    (1.0 - keep) * frequency / factor + keep * frequency
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= 1e-14 * e.abs(), "{got:?} {expected:?}");
        }
    }

    fn scaled(theta: f64, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, scaling }
    }

    #[test]
    fn plain_and_linear() {
        close(&RopeConfig::new(10000.0).frequencies(4), &[1.0, 0.01]);
        let linear = scaled(10000.0, RopeScaling::Linear { factor: 8.0 });
        close(&linear.frequencies(4), &[0.125, 0.00125]);
        assert_eq!(linear.attention_factor(), 1.0);
    }

    #[test]
    fn llama3_keeps_high_divides_low_and_blends() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64,
        };
        // Turns over 64 tokens: 10.19 (kept), 1.0186 (a ratio of 0.0062), 0.10 (divided).
        let config = scaled(1000.0, scaling);
        let ratio = (64.0 * 0.1 / TAU - 1.0) / 3.0;
        close(&config.frequencies(6), &[1.0, (1.0 - ratio) * 0.1 / 8.0 + ratio * 0.1, 0.01 / 8.0]);
    }

    #[test]
    fn yarn_ramps_over_the_index() {
        let yarn = |attention_factor| RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor,
        };
        // 8 ln(64 / 2pi) / (2 ln 10000) = 1.008, so the ramp goes from 0 to 2.
        let config = scaled(10000.0, yarn(None));
        close(&config.frequencies(8), &[1.0, 0.1 * 0.625, 0.01 / 4.0, 0.001 / 4.0]);
        close(&[config.attention_factor()], &[1.138_629_436_111_989]);
        assert_eq!(scaled(1e4, yarn(Some(1.5))).attention_factor(), 1.5);
    }
}
