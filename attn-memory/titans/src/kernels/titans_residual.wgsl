// The cotangent of the last layer's errors, with what came through those of the layer before, and its
// negative, that of the values: diag(steps) D + A W.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs six storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 depth, chunks]
@group(0) @binding(2) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(3) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(5) var<storage, read_write> dv: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let plane = at.piece * params.planes + at.plane;
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(4u * (plane * depth + k) + j) * chunks + own];
    }
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = a[rows[j] + k];
    }
#import "titans_products"
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      let sum = fma(vec4<f32>(ends[token].w), d[cell], sums[i]);
      out[cell] = sum;
      dv[cell] = -sum;
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
