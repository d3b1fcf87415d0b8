// How four neighbouring elements of a source lie in memory: as they are in f32, packed into two words
// in half types. Arithmetic is in f32 always.
#ifdef SOURCE_F16
alias Source = vec2<u32>;

fn unpack_source(chunk: Source) -> vec4<f32> {
  return unpack_f16(chunk);
}

fn pack_source(value: vec4<f32>) -> Source {
  return pack_f16(value);
}
#else
#ifdef SOURCE_BF16
alias Source = vec2<u32>;

fn unpack_source(chunk: Source) -> vec4<f32> {
  return unpack_bf16(chunk);
}

fn pack_source(value: vec4<f32>) -> Source {
  return pack_bf16(value);
}
#else
alias Source = vec4<f32>;

fn unpack_source(chunk: Source) -> vec4<f32> {
  return chunk;
}

fn pack_source(value: vec4<f32>) -> Source {
  return value;
}
#endif
#endif
