// The weights of a layer and their momentum behind a piece, in place:
//   W <- beta W + kappa S - (diag(C_m) X)^T G,   S <- momentum S - (diag(omega) X)^T G,
// with the shares of the piece's last token.
// An invocation owns four rows by four columns of both. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> error: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(2) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(3) var<storage, read> shares: array<f32>; // [planes, tokens, chunk to a multiple of four]
@group(0) @binding(4) var<storage, read> momentum: array<f32>; // [planes, all]
@group(0) @binding(5) var<storage, read_write> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(6) var<storage, read_write> s: array<vec4<f32>>; // [planes, 4 depth, chunks]

fn one(index: u32) {
  // A tile is of rows of the weights here.
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  let length = at.length;
  let start = at.start;
  let last = start + length - 1u;
  let width = (params.chunk + 3u) / 4u * 4u;
  var weights: array<vec4<f32>, TILE>;
  var moving: array<vec4<f32>, TILE>;
  for (var t = 0u; t < length; t++) {
    let token = start + t;
    let end = ends[token];
    let step = error[token * chunks + at.column] * end.w;
    let values = x[token * depth + at.row / 4u];
    let by_w = values * shares[last * width + t];
    let by_s = values * end.z;
    #unroll
    for (var i = 0u; i < TILE; i++) {
      weights[i] = fma(vec4<f32>(by_w[i]), step, weights[i]);
      moving[i] = fma(vec4<f32>(by_s[i]), step, moving[i]);
    }
  }
  let end = ends[last];
  let left = momentum[at.plane * params.all + at.piece];
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let cell = (at.plane * 4u * depth + at.row + i) * chunks + at.column;
    let before = s[cell];
    w[cell] = fma(vec4<f32>(end.x), w[cell], fma(vec4<f32>(end.y), before, -weights[i]));
    s[cell] = fma(vec4<f32>(left), before, -moving[i]);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
