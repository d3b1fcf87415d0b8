// 1 / sqrt(mean square + eps) of a row, from the sums of squares of its elements, and of the elements
// times SMALL: squares of values above 1e18 overflow.
const SMALL = 8.271806125530277e-25; // 2^-80
const LARGE_SUM = 1e36;

fn inverse_root(sums: vec4<f32>) -> f32 {
  let count = f32(width);
  let plain = inverseSqrt(min(sums.x, LARGE_SUM) / count + params.eps);
  let large = inverseSqrt(max(sums.y / count, 1e-30)) * SMALL;
  return select(large, plain, sums.x < LARGE_SUM);
}
