// How four neighbouring elements of a target lie in memory: as they are in f32, packed into two words
// in half types. Arithmetic is in f32 always.
#ifdef TARGET_F16
alias Target = vec2<u32>;

fn unpack_target(chunk: Target) -> vec4<f32> {
  return unpack_f16(chunk);
}

fn pack_target(value: vec4<f32>) -> Target {
  return pack_f16(value);
}
#else
#ifdef TARGET_BF16
alias Target = vec2<u32>;

fn unpack_target(chunk: Target) -> vec4<f32> {
  return unpack_bf16(chunk);
}

fn pack_target(value: vec4<f32>) -> Target {
  return pack_bf16(value);
}
#else
alias Target = vec4<f32>;

fn unpack_target(chunk: Target) -> vec4<f32> {
  return chunk;
}

fn pack_target(value: vec4<f32>) -> Target {
  return value;
}
#endif
#endif
