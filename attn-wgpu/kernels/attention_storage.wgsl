// How four neighbouring elements lie in memory: as they are in f32, packed into two words in half
// types. Arithmetic is in f32 always, and no optional feature is needed.
#ifdef F16
alias Chunk = vec2<u32>;

fn unpack(chunk: Chunk) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(chunk.x), unpack2x16float(chunk.y));
}

fn pack(value: vec4<f32>) -> Chunk {
  return vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw));
}
#else
#ifdef BF16
alias Chunk = vec2<u32>;

fn unpack(chunk: Chunk) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(chunk.x << 16u, chunk.x & 0xffff0000u, chunk.y << 16u, chunk.y & 0xffff0000u));
}

fn pack(value: vec4<f32>) -> Chunk {
  // To the nearest, ties to even; NaN keeps a bit of its payload.
  let bits = bitcast<vec4<u32>>(value);
  let rounded = bits + vec4<u32>(0x7fffu) + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u));
  let is_nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
  let half = select(rounded, bits | vec4<u32>(0x400000u), is_nan) >> vec4<u32>(16u);
  return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}
#else
alias Chunk = vec4<f32>;

fn unpack(chunk: Chunk) -> vec4<f32> {
  return chunk;
}

fn pack(value: vec4<f32>) -> Chunk {
  return value;
}
#endif
#endif
