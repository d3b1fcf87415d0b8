// Operands of the products with packed weights: out = activation(a W^T + bias) + residual. a, residual and
// out are addressed in chunks of four elements along the last dimension; AChunk .. are vec4<f32>, or
// vec2<u32> for halves (A_F16, A_BF16, ..). Six storage buffers.

@group(0) @binding(1) var<storage, read> codes: array<vec4<u32>>; // [N / 4, K / 32, CODES]
@group(0) @binding(2) var<storage, read> scales: array<ScaleChunk>; // [N / 4, blocks of K, ..]
@group(0) @binding(3) var<storage, read> bias: array<BiasChunk>; // [N]
@group(0) @binding(4) var<storage, read> residual: array<OutChunk>; // [B0, B1, M, N]
#ifdef OUT_ELEMENTS
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // [B0, B1, M, N]
#else
@group(0) @binding(5) var<storage, read_write> out: array<OutChunk>; // [B0, B1, M, N]
#endif

#import "matmul_left"
#import "packed_block"

// Where the codes and the scales of four columns begin; those beyond the last repeat the last four.
fn codes_of(column4: u32) -> u32 {
  return params.codes_start + min(column4, (params.columns - 1u) / 4u) * params.codes_stride;
}

fn scales_of(column4: u32) -> u32 {
  return params.scales_start + min(column4, (params.columns - 1u) / 4u) * params.scales_stride;
}

fn sum4(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}
