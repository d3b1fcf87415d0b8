//! Activation functions that kernels apply to their results.

use crate::kernel::Constants;

/// A function of one element. A kernel that imports the snippet `activation` of
/// [`ops::SNIPPETS`](crate::ops::SNIPPETS), and whose constants went through
/// [`Activation::constants`], calls it as `activate(vec4<f32>) -> vec4<f32>`.
///
/// With `Phi` the distribution function of the normal distribution:
///
/// | | |
/// |---|---|
/// | `None` | `x` |
/// | `Relu` | `max(x, 0)` |
/// | `Silu` | `x / (1 + exp(-x))` |
/// | `Gelu` | `x Phi(x) = x (1 + erf(x / sqrt(2))) / 2` |
/// | `GeluTanh` | `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2` |
///
/// In f32 the error is some 1e-6 times `|x|` at most, for any finite `x`; NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// Rectified linear unit.
    Relu,
    /// Sigmoid linear unit, also called swish.
    Silu,
    /// Gaussian error linear unit.
    Gelu,
    /// The approximation of [`Activation::Gelu`] that many models were trained with.
    GeluTanh,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 5] = [
        Activation::None,
        Activation::Relu,
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
    ];

    /// The usual name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Activation::None => "none",
            Activation::Relu => "relu",
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
        }
    }

    /// Chooses this activation in kernels that import the snippet `activation`.
    pub fn constants(self, constants: Constants) -> Constants {
        constants
            .flag("RELU", self == Activation::Relu)
            .flag("SILU", self == Activation::Silu)
            .flag("GELU", self == Activation::Gelu)
            .flag("GELU_TANH", self == Activation::GeluTanh)
    }

    /// The function in f64, on the host.
    pub fn reference(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Activation::GeluTanh => {
                let slope = (2.0 / std::f64::consts::PI).sqrt();
                0.5 * x * (1.0 + (slope * (x + 0.044715 * x * x * x)).tanh())
            }
        }
    }
}

/// `1 - erf(z)`: by the power series of erf near 0, by the continued fraction of erfc beyond.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    let scale = (-z * z).exp() / std::f64::consts::PI.sqrt();
    if z > 2.5 {
        let fraction = (1..=80).rev().fold(z, |rest, n| z + 0.5 * f64::from(n) / rest);
        return scale / fraction;
    }
    // erf(z) = 2 / sqrt(pi) exp(-z^2) sum_n 2^n z^(2n+1) / (1 3 5 .. (2n+1)), all terms positive.
    let (mut term, mut sum) = (z, z);
    for n in 1..60 {
        term *= 2.0 * z * z / f64::from(2 * n + 1);
        sum += term;
    }
    1.0 - 2.0 * scale * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the error function from tables (DLMF 7.23, Abramowitz and Stegun 7.1).
    #[test]
    fn error_function() {
        for (z, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_1),
            (2.0, 4.677_734_981_047_266e-3),
            (3.0, 2.209_049_699_858_544e-5),
            (5.0, 1.537_459_794_428_035e-12),
        ] {
            assert!((erfc(z) - want).abs() <= 1e-11 * want, "{z}: {} {want}", erfc(z));
            assert!((erfc(-z) - (2.0 - want)).abs() <= 1e-15 * 4.0, "{z}");
        }
        let (left, right) = (erfc(2.5), erfc(2.5 + 1e-12));
        assert!((left / right - 1.0).abs() < 1e-9, "{left} {right}");
    }

    #[test]
    fn limits() {
        for activation in Activation::ALL {
            assert_eq!(activation.reference(0.0), 0.0);
            let (far, near) = (activation.reference(1e30), activation.reference(-1e30));
            assert_eq!(far, 1e30, "{activation:?}");
            let want = if activation == Activation::None { -1e30 } else { 0.0 };
            assert_eq!(near, want, "{activation:?}");
        }
    }
}
