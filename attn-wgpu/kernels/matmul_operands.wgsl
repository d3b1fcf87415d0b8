// Operands of all matmul kernels: out = activation(a b + bias) + residual, for every
// pair of batch entries. All memory is addressed in chunks of four elements along the contiguous
// dimension, which is padded with zeros where it is not a multiple of four.
//
// a is contiguous along the depth, or along its rows (A_COLUMNS). b is contiguous along the depth,
// as weights are stored, or along its columns (B_ROWS). AChunk .. are vec4<f32>, or vec2<u32> for
// halves (A_F16, A_BF16, ..).

@group(0) @binding(1) var<storage, read> b: array<BChunk>; // [B0, B1, K, N]
@group(0) @binding(2) var<storage, read> bias: array<BiasChunk>; // [N]
@group(0) @binding(3) var<storage, read> residual: array<OutChunk>; // [B0, B1, M, N]
#ifdef OUT_ELEMENTS
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [B0, B1, M, N]
#else
@group(0) @binding(4) var<storage, read_write> out: array<OutChunk>; // [B0, B1, M, N]
#endif
#ifdef SUMS
// Sums over a part of the depth, before the epilogue.
@group(0) @binding(5) var<storage, read_write> sums_so_far: array<vec4<f32>>; // [B0, B1, M, N]
#endif

#import "matmul_left"

fn read_b(at: u32) -> vec4<f32> {
#ifdef B_F16
  return unpack_f16(b[at]);
#else
#ifdef B_BF16
  return unpack_bf16(b[at]);
#else
  return b[at];
#endif
#endif
}

// Four steps of the depth (from 4 * depth4 on) by four columns: a row of the block is a step. Steps
// beyond the depth repeat the last one, and meet zeros of a; columns beyond the last repeat it.
fn block_of_b(start: u32, depth4: u32, column4: u32) -> mat4x4<f32> {
#ifdef B_ROWS
  let at = start + min(column4, (params.columns - 1u) / 4u);
  let step = depth4 * 4u;
  let last = params.depth - 1u;
  return mat4x4<f32>(
    read_b(at + min(step, last) * params.b.w),
    read_b(at + min(step + 1u, last) * params.b.w),
    read_b(at + min(step + 2u, last) * params.b.w),
    read_b(at + min(step + 3u, last) * params.b.w));
#else
  let at = start + min(depth4, (params.depth - 1u) / 4u);
  let column = column4 * 4u;
  let last = params.columns - 1u;
  return transpose(mat4x4<f32>(
    read_b(at + min(column, last) * params.b.w),
    read_b(at + min(column + 1u, last) * params.b.w),
    read_b(at + min(column + 2u, last) * params.b.w),
    read_b(at + min(column + 3u, last) * params.b.w)));
#endif
}
