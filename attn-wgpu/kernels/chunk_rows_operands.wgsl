// Operands of the kernels of one side of linear attention in blocks: of each block
//   out = ((A B^T) * M) X + F A S,
// M[r, p] = decay^(r - p) for p <= r, or decay^(p - r) for p >= r on the upper side, F = decay^(r + 1),
// or decay^(last - r) on the upper side, and S the state beside the block (transposed with STATE_T).
// On the upper side the query heads of a key head are added in order.

#import "halves"
#import "source"
#import "row_place"
#import "linear"

@group(0) @binding(0) var<storage, read> a: array<Source>; // strided [B, H, N, 4 depth4]
@group(0) @binding(1) var<storage, read> b: array<Source>; // strided [B, H, N, 4 depth4]
@group(0) @binding(2) var<storage, read> x: array<Source>; // strided [B, H, N, 4 width4]
@group(0) @binding(3) var<storage, read> states: array<vec4<f32>>; // [B, H, blocks, D, E]
@group(0) @binding(4) var<storage, read> powers: array<f32>; // [H, block + 1]
@group(0) @binding(5) var<storage, read_write> out: array<Source>; // strided [B, H, N, 4 width4]

#import "chunk_powers"

// Four steps of the depth by four columns of S: a row is a step.
fn block_of_state(start: u32, step: u32, column: u32) -> mat4x4<f32> {
#ifdef STATE_T
  let row4 = params.depth4;
  let at = start + 4u * column * row4 + step;
  return transpose(mat4x4<f32>(states[at], states[at + row4], states[at + 2u * row4], states[at + 3u * row4]));
#else
  let row4 = params.width4;
  let at = start + 4u * step * row4 + column;
  return mat4x4<f32>(states[at], states[at + row4], states[at + 2u * row4], states[at + 3u * row4]);
#endif
}

// Numbers that grow in the direction in which rows see columns.
fn in_order(token: vec4<u32>) -> vec4<u32> {
  return select(token, vec4<u32>(0xfffffffeu) - token, params.upper > 0u);
}
