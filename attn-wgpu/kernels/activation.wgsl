// The activation function that a flag names, of four elements: SiLU, GELU with the error function,
// GELU with its tanh approximation, or ReLU; without a flag the value itself. NaN stays NaN.
//
// Exponentials only get arguments of at most 0, so that none overflows, and where one would
// underflow the result is 0: a large factor must not bring a flushed value back.

const ACTIVATION_LOG2_E = 1.4426950408889634;

// 1 / (1 + exp(-value)).
fn sigmoid(value: vec4<f32>) -> vec4<f32> {
  let decay = exp2(-min(abs(value), vec4<f32>(88.0)) * ACTIVATION_LOG2_E);
  let share = select(decay, vec4<f32>(1.0), value >= vec4<f32>(0.0)) / (1.0 + decay);
  return select(share, vec4<f32>(0.0), value < vec4<f32>(-87.0));
}

// 1 - erf(size) for size >= 0: exp(-size^2) t p(t) with t = 1 / (1 + size / 2), where p interpolates
// at the Chebyshev nodes of [0, 9.5]. Relative error 3e-7, but for that of exp2.
fn erfc_positive(size: vec4<f32>) -> vec4<f32> {
  let z = min(size, vec4<f32>(9.3));
  let t = 1.0 / fma(z, vec4<f32>(0.5), vec4<f32>(1.0));
  var p = vec4<f32>(-0.05933812588584489);
  p = fma(p, t, vec4<f32>(0.2859796716547745));
  p = fma(p, t, vec4<f32>(-0.4902760465359553));
  p = fma(p, t, vec4<f32>(0.2817421930100503));
  p = fma(p, t, vec4<f32>(-0.029231097989415502));
  p = fma(p, t, vec4<f32>(0.20380226079392588));
  p = fma(p, t, vec4<f32>(0.24282409076039305));
  p = fma(p, t, vec4<f32>(0.2824126132381265));
  p = fma(p, t, vec4<f32>(0.2820844013853151));
  let tail = exp2(-z * z * ACTIVATION_LOG2_E) * t * p;
  return select(tail, vec4<f32>(0.0), size > vec4<f32>(9.2));
}

fn activate(value: vec4<f32>) -> vec4<f32> {
#ifdef RELU
  // By the bits: drivers make a maximum of a comparison, and that of NaN and 0 is 0. Negative
  // numbers, and no NaN, are those from -0 to -infinity.
  let bits = bitcast<vec4<u32>>(value) - vec4<u32>(0x80000000u);
  return select(value, vec4<f32>(0.0), bits <= vec4<u32>(0x7f800000u));
#else
#ifdef SILU
  return value * sigmoid(value);
#else
#ifdef GELU
  let half = 0.5 * abs(value) * erfc_positive(abs(value) * 0.7071067811865476);
  return select(-half, value - half, value > vec4<f32>(0.0));
#else
#ifdef GELU_TANH
  // Beyond 30 the sigmoid is 0 or 1, and powers stay finite.
  let x = clamp(value, vec4<f32>(-30.0), vec4<f32>(30.0));
  return value * sigmoid(1.5957691216057308 * x * fma(x * x, vec4<f32>(0.044715), vec4<f32>(1.0)));
#else
  return value;
#endif
#endif
#endif
#endif
}
