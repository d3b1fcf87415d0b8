// What a bound leaves of a gradient of norm `norm`: tanh(r) / r with r = norm / bound, and the derivative
// of that by the norm, over the norm. Near 0 by their series, where the closed forms cancel.
fn shrink(norm: f32, bound: f32) -> vec2<f32> {
  let r = norm / bound;
  let x = r * r;
  if r < 0.5 {
    var factor = -0.0014558344;
    factor = fma(factor, x, 0.0035921280);
    factor = fma(factor, x, -0.0088632355);
    factor = fma(factor, x, 0.021869488);
    factor = fma(factor, x, -0.053968254);
    factor = fma(factor, x, 0.13333333);
    factor = fma(factor, x, -0.33333333);
    var slope = -0.020381681;
    slope = fma(slope, x, 0.043105536);
    slope = fma(slope, x, -0.088632355);
    slope = fma(slope, x, 0.17495591);
    slope = fma(slope, x, -0.32380952);
    slope = fma(slope, x, 0.53333333);
    slope = fma(slope, x, -0.66666667);
    return vec2<f32>(fma(factor, x, 1.0), slope / (bound * bound));
  }
  // 1 - tanh(r), so that nothing cancels where it is small.
  let decay = exp2(-2.0 * 1.4426950408889634 * min(r, 40.0));
  let rest = 2.0 * decay / (1.0 + decay);
  let factor = (1.0 - rest) / r;
  return vec2<f32>(factor, (rest * (2.0 - rest) - factor) / (norm * norm));
}
