// The derivative of the activation that a flag names, SiLU or GELU with the error function, of four elements.
// Needs the snippet with the activations.
fn slope(value: vec4<f32>) -> vec4<f32> {
#ifdef SILU
  let s = sigmoid(value);
  return s * (1.0 + value * (1.0 - s));
#else
  let tail = 0.5 * erfc_positive(abs(value) * 0.7071067811865476);
  let share = select(tail, 1.0 - tail, value > vec4<f32>(0.0));
  let near = clamp(value, vec4<f32>(-13.0), vec4<f32>(13.0));
  return share + 0.3989422804014327 * near * exp2(near * near * (-0.5 * ACTIVATION_LOG2_E));
#endif
}
