// Derivative of the position embedding by what it embeds: dx = dy_c cos(n theta) + dy_s sin(n theta).
//
// An invocation owns an element of dx. No workgroup memory; three storage buffers.

struct Params {
  count: u32,
  heads: u32, tokens: u32, dim: u32,
  first: u32,
}

@group(0) @binding(0) var<storage, read> dy: array<f32>; // [B, H, N, 2 D]
@group(0) @binding(1) var<storage, read> turns: array<vec2<u32>>; // [H, D]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [B, H, N, D]

#import "waves"

fn one(index: u32) {
  let d = index % params.dim;
  let row = index / params.dim;
  let head = row / params.tokens % params.heads;
  let wave = waves(params.first + row % params.tokens, turns[head * params.dim + d]);
  let at = row * 2u * params.dim + d;
  dx[index] = fma(dy[at], wave.y, dy[at + params.dim] * wave.x);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
