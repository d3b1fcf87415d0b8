// Derivative of the position embedding by its angles, of some tokens: the sum over them and the batch
// of n x (dy_s cos(n theta) - dy_c sin(n theta)). lightning_sum.wgsl adds up the parts.
//
// An invocation owns an angle in one run of `run` tokens. No workgroup memory; four storage buffers.

struct Params {
  count: u32,
  batch: u32, heads: u32, tokens: u32, dim: u32,
  first: u32, run: u32,
  // Start and strides of x in elements.
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [B, H, N, D]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [B, H, N, 2 D]
@group(0) @binding(2) var<storage, read> turns: array<vec2<u32>>; // [H, D]
@group(0) @binding(3) var<storage, read_write> parts: array<f32>; // [runs, H, D]

#import "waves"

fn one(index: u32) {
  let angle = index % (params.heads * params.dim);
  let d = angle % params.dim;
  let head = angle / params.dim;
  let begin = index / (params.heads * params.dim) * params.run;
  let end = min(begin + params.run, params.tokens);
  let turn = turns[angle];
  var sum = 0.0;
  for (var n = begin; n < end; n++) {
    let wave = waves(params.first + n, turn);
    var slope = 0.0;
    for (var b = 0u; b < params.batch; b++) {
      let at = ((b * params.heads + head) * params.tokens + n) * 2u * params.dim + d;
      let value = x[params.start + b * params.stride_0 + head * params.stride_1 + n * params.stride_2 + d];
      slope = fma(value, fma(dy[at + params.dim], wave.y, -dy[at] * wave.x), slope);
    }
    sum = fma(f32(params.first + n), slope, sum);
  }
  parts[index] = sum;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
