// Position embedding: y = [x cos(n theta), x sin(n theta)] for the position n of each token.
//
// An invocation owns an element of x, and with it two of y. No workgroup memory; three storage buffers.

struct Params {
  count: u32,
  heads: u32, tokens: u32, dim: u32,
  first: u32,
  // Start and strides of x in elements.
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [B, H, N, D]
@group(0) @binding(1) var<storage, read> turns: array<vec2<u32>>; // [H, D]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [B, H, N, 2 D]

#import "waves"

fn one(index: u32) {
  let d = index % params.dim;
  let row = index / params.dim;
  let n = row % params.tokens;
  let plane = row / params.tokens;
  let head = plane % params.heads;
  let at = params.start + plane / params.heads * params.stride_0 + head * params.stride_1 + n * params.stride_2;
  let wave = waves(params.first + n, turns[head * params.dim + d]);
  let value = x[at + d];
  let out = row * 2u * params.dim + d;
  y[out] = value * wave.y;
  y[out + params.dim] = value * wave.x;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
