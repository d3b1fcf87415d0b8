// The first and second derivative of the activation that a flag names, of four elements.
// For kernels that import `activation`; no bindings, no workgroup memory.

// Of the normal distribution.
fn density(value: vec4<f32>) -> vec4<f32> {
  let near = clamp(value, vec4<f32>(-13.0), vec4<f32>(13.0));
  return 0.3989422804014327 * exp2(near * near * (-0.5 * ACTIVATION_LOG2_E));
}

fn slope(value: vec4<f32>) -> vec4<f32> {
#ifdef SILU
  let s = sigmoid(value);
  return s * (1.0 + value * (1.0 - s));
#else
  let tail = 0.5 * erfc_positive(abs(value) * 0.7071067811865476);
  let share = select(tail, 1.0 - tail, value > vec4<f32>(0.0));
  let near = clamp(value, vec4<f32>(-13.0), vec4<f32>(13.0));
  return share + near * density(value);
#endif
}

// The second derivative.
fn curvature(value: vec4<f32>) -> vec4<f32> {
#ifdef SILU
  let s = sigmoid(value);
  return s * (1.0 - s) * (2.0 + value * (1.0 - 2.0 * s));
#else
  let near = clamp(value, vec4<f32>(-13.0), vec4<f32>(13.0));
  return density(value) * (2.0 - near * near);
#endif
}
