// Four elements of a half type in two words, to and from f32. Rounding is to the nearest, ties to
// even; f16 overflows to infinity. Integers do it, because WGSL leaves both to the device.

fn unpack_f16(chunk: vec2<u32>) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(chunk.x), unpack2x16float(chunk.y));
}

fn pack_f16(value: vec4<f32>) -> vec2<u32> {
  let bits = bitcast<vec4<u32>>(value);
  let size = bits & vec4<u32>(0x7fffffffu);
  let odd = (size >> vec4<u32>(13u)) & vec4<u32>(1u);
  let normal = (max(size, vec4<u32>(0x38000000u)) - 0x38000000u + 0xfffu + odd) >> vec4<u32>(13u);
  // One unit in the last place of 0.5 is the smallest f16, so this sum rounds to one.
  let tiny = bitcast<vec4<u32>>(bitcast<vec4<f32>>(min(size, vec4<u32>(0x38800000u))) + 0.5) - 0x3f000000u;
  var half = select(min(normal, vec4<u32>(0x7c00u)), tiny, size < vec4<u32>(0x38800000u));
  half = select(half, vec4<u32>(0x7e00u), size > vec4<u32>(0x7f800000u));
  half |= (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
  return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}

fn unpack_bf16(chunk: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(chunk.x << 16u, chunk.x & 0xffff0000u, chunk.y << 16u, chunk.y & 0xffff0000u));
}

fn pack_bf16(value: vec4<f32>) -> vec2<u32> {
  // NaN keeps a bit of its payload.
  let bits = bitcast<vec4<u32>>(value);
  let rounded = bits + vec4<u32>(0x7fffu) + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u));
  let is_nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
  let half = select(rounded, bits | vec4<u32>(0x400000u), is_nan) >> vec4<u32>(16u);
  return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}
