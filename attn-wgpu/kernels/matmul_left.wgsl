// The left operand of all products, in chunks of four elements along its contiguous dimension, and where
// batch entries begin. AChunk is vec4<f32>, or vec2<u32> for halves (A_F16, A_BF16).

@group(0) @binding(0) var<storage, read> a: array<AChunk>; // [B0, B1, M, K]

#import "linear"
#import "halves"

fn read_a(at: u32) -> vec4<f32> {
#ifdef A_F16
  return unpack_f16(a[at]);
#else
#ifdef A_BF16
  return unpack_bf16(a[at]);
#else
  return a[at];
#endif
#endif
}

// Start of a batch entry; `place` is start, outer and inner stride.
fn entry(place: vec4<u32>, batch: u32) -> u32 {
  return place.x + batch / params.inner * place.y + batch % params.inner * place.z;
}
