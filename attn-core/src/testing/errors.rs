use crate::dense;

/// Distance of a result from the f64 reference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Errors {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Root mean square difference.
    pub rms: f64,
    /// Norm of the difference over the norm of the reference; 0 where both are 0.
    pub rel_l2: f64,
    /// Index of the largest difference, 0 for empty data.
    pub worst: usize,
}

/// Distance of `got` from `want`.
///
/// Where the reference is infinite, an element is right if it is the same infinity and wrong
/// otherwise. A wrong element, a NaN on either side, and data of different lengths make the
/// distance infinite, so that no bound admits them.
pub fn compare(got: &[f32], want: &[f64]) -> Errors {
    let mut errors = Errors::default();
    if got.len() != want.len() {
        let inf = f64::INFINITY;
        return Errors { max_abs: inf, rms: inf, rel_l2: inf, worst: got.len().min(want.len()) };
    }
    let (mut squares, mut norm) = (0.0, 0.0);
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = difference(got, want);
        if error > errors.max_abs {
            (errors.max_abs, errors.worst) = (error, index);
        }
        squares += error * error;
        norm += if want.is_finite() { want * want } else { 0.0 };
    }
    errors.rms = (squares / got.len().max(1) as f64).sqrt();
    errors.rel_l2 = if squares == 0.0 { 0.0 } else { (squares / norm).sqrt() };
    errors
}

fn difference(got: f32, want: f64) -> f64 {
    let got = f64::from(got);
    if got.is_finite() && want.is_finite() {
        (got - want).abs()
    } else if got == want {
        0.0
    } else {
        f64::INFINITY
    }
}

/// How far a result may be from the f64 reference: `factor` times as far as a simple f32
/// implementation of the same mathematics on the same inputs, plus a small floor.
///
/// Such a bound scales with lengths and values and means the same on every device. Maximum and
/// root mean square are both held to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Factor on the error of the simple implementation. Default 4.
    pub factor: f64,
    /// The floor, in units of f32's epsilon times the largest reference value: without it a simple
    /// result that happens to be exact (one key, equal values) would allow no rounding. Default 4.
    pub floor_ulps: f64,
    /// Magnitude of the logits behind the result, which raises the floor by as many units. Default
    /// 0; [`Budget::for_output`] takes it from the reference.
    ///
    /// One rounding of a logit `s` changes its weight by a factor `1 + epsilon |s|`. Whether the
    /// simple implementation suffers it is luck where there are few keys, and no luck of another
    /// implementation must be a failure.
    pub logits: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { factor: 4.0, floor_ulps: 4.0, logits: 0.0 }
    }
}

impl Budget {
    /// The default budget for results of the call that has this output.
    pub fn for_output(reference: &dense::Output) -> Self {
        // A soft-cap and a bias make logits smaller, and not the rounding of the products.
        let all = reference.row_max.iter().chain(&reference.product_bound);
        // Where terms of a product cancel, rounding is of their size.
        let finite = all.filter(|max| max.is_finite());
        let logits = finite.fold(0.0, |largest: f64, max| largest.max(max.abs()));
        Budget { logits, ..Budget::default() }
    }

    /// Holds `got` to the budget. `what` names the tensor in the message; `simple` is the result of
    /// the simple f32 implementation, `want` that of the f64 reference.
    ///
    /// # Errors
    /// A message with both errors, the bounds and the worst element.
    pub fn check(
        &self,
        what: &str,
        got: &[f32],
        simple: &[f32],
        want: &[f64],
    ) -> Result<Errors, String> {
        let errors = compare(got, want);
        let yardstick = compare(simple, want);
        let finite = want.iter().filter(|x| x.is_finite());
        let floor = (self.floor_ulps + self.logits)
            * f64::from(f32::EPSILON)
            * finite.fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let max_bound = self.factor * yardstick.max_abs + floor;
        let rms_bound = self.factor * yardstick.rms + floor;
        if got.len() != want.len() {
            return Err(format!("{what}: {} elements, expected {}", got.len(), want.len()));
        }
        if !yardstick.max_abs.is_finite() {
            return Err(format!(
                "{what}: the simple implementation or the reference is not usable"
            ));
        }
        if errors.max_abs <= max_bound && errors.rms <= rms_bound {
            return Ok(errors);
        }
        let at = errors.worst;
        Err(format!(
            "{what}: max error {:.3e} (bound {max_bound:.3e}, simple {:.3e}), rms {:.3e} (bound \
             {rms_bound:.3e}, simple {:.3e}); worst at {at}: got {:e}, expected {:e}, simple {:e}",
            errors.max_abs,
            yardstick.max_abs,
            errors.rms,
            yardstick.rms,
            got[at],
            want[at],
            simple[at],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures() {
        let errors = compare(&[1.0, 2.0, 3.5], &[1.0, 2.0, 3.0]);
        assert_eq!((errors.max_abs, errors.worst), (0.5, 2));
        assert_eq!(errors.rms, (0.25_f64 / 3.0).sqrt());
        assert_eq!(errors.rel_l2, (0.25_f64 / 14.0).sqrt());
        assert_eq!(compare(&[], &[]), Errors::default());
        assert_eq!(compare(&[0.0], &[0.0]), Errors::default());
    }

    #[test]
    fn only_the_same_infinity_is_right() {
        let (inf, ninf) = (f32::INFINITY, f64::NEG_INFINITY);
        assert_eq!(compare(&[-inf], &[ninf]).max_abs, 0.0);
        for (got, want) in [
            (inf, ninf),
            (-3e38, ninf),
            (f32::NAN, ninf),
            (f32::NAN, 1.0),
            (1.0, f64::NAN),
            (inf, 1.0),
        ] {
            assert_eq!(compare(&[got], &[want]).max_abs, f64::INFINITY, "{got} {want}");
        }
        assert_eq!(compare(&[1.0], &[1.0, 2.0]).max_abs, f64::INFINITY);
    }

    #[test]
    fn budget() {
        let check = |got: f32, simple: f32| Budget::default().check("x", &[got], &[simple], &[1.0]);
        assert!(check(1.0, 1.0).is_ok());
        assert!(check(1.0 + 4.0 * f32::EPSILON, 1.0).is_ok(), "inside the floor");
        assert!(check(1.0 + 5.0 * f32::EPSILON, 1.0).is_err());
        assert!(check(1.0 + 8.0 * f32::EPSILON, 1.0 + f32::EPSILON).is_ok(), "inside the budget");
        assert!(check(f32::NAN, 1.0).is_err());
        assert!(check(f32::NAN, f32::NAN).is_err(), "a broken yardstick admits nothing");
        let message = check(2.0, 1.0).unwrap_err();
        assert!(message.contains("worst at 0: got 2e0, expected 1e0"), "{message}");
    }
}
