// cap * tanh(value / cap), for any finite value: the exponential only gets arguments of at most 0,
// and near 0, where its difference from 1 loses digits, a power series takes over.
fn soft_cap(value: vec4<f32>, cap: f32) -> vec4<f32> {
  let x = value / cap;
  let size = min(abs(x), vec4<f32>(20.0));
  let decay = exp2(-2.8853900817779268 * size);
  let far = sign(x) * (1.0 - decay) / (1.0 + decay);
  let s = size * size;
  var series = fma(s, vec4<f32>(62.0 / 2835.0), vec4<f32>(-17.0 / 315.0));
  series = fma(series, s, vec4<f32>(2.0 / 15.0));
  series = fma(series, s, vec4<f32>(-1.0 / 3.0));
  let near = fma(x * s, series, x);
  return cap * select(far, near, size < vec4<f32>(0.25));
}
