// Four neighbouring elements of a half type in two words, and how they become f32 and back, without
// any optional feature. Rounding is to the nearest, ties to even; NaN stays NaN.

fn unpack_f16(chunk: vec2<u32>) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(chunk.x), unpack2x16float(chunk.y));
}

fn pack_f16(value: vec4<f32>) -> vec2<u32> {
  return vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw));
}

fn unpack_bf16(chunk: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(
    vec4<u32>(chunk.x << 16u, chunk.x & 0xffff0000u, chunk.y << 16u, chunk.y & 0xffff0000u));
}

fn pack_bf16(value: vec4<f32>) -> vec2<u32> {
  let bits = bitcast<vec4<u32>>(value);
  let rounded = bits + vec4<u32>(0x7fffu) + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u));
  let is_nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
  let half = select(rounded, bits | vec4<u32>(0x400000u), is_nan) >> vec4<u32>(16u);
  return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}
