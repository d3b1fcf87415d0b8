// Floats as integers of the same order: NaN below everything, -0 as 0. In: values; out: keys, and
// back.

fn keys_of(value: vec4<f32>) -> vec4<u32> {
  let raw = bitcast<vec4<u32>>(value);
  let bits = select(raw, vec4<u32>(0u), raw == vec4<u32>(0x80000000u));
  let is_negative = bits >= vec4<u32>(0x80000000u);
  let key = select(bits | vec4<u32>(0x80000000u), ~bits, is_negative);
  let is_nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
  return select(key, vec4<u32>(0u), is_nan);
}

fn key_of(value: f32) -> u32 {
  return keys_of(vec4<f32>(value)).x;
}

// The bits of the value; those of a NaN for key 0.
fn bits_of_key(key: u32) -> u32 {
  return select(~key, key ^ 0x80000000u, key >= 0x80000000u);
}
