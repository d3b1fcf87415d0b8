// The way back through titans_bound: the cotangent of the errors before the bound from that of those
// behind it, both before their steps, and what the inputs get.
// An invocation owns four tokens. No workgroup memory; needs six storage buffers.

struct Params {
#import "titans_fields"
  // vec4s of a row of errors.
  width: u32,
  coefficient: f32,
  bound: f32,
}

#import "titans_piece"
#import "titans_shrink"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(2) var<storage, read> by_bounded: array<vec4<f32>>; // [planes, tokens, width]
// beta, kappa, omega and the step.
@group(0) @binding(3) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>; // [planes, tokens, depth]

fn one(index: u32) {
  let at = place(index);
  for (var row = at.row; row < min(at.row + TILE, at.length); row++) {
    let token = at.start + row;
    let inputs = token * params.depth;
    let errors = token * params.width;
    var by_x = 0.0;
    var by_d = 0.0;
    var both = 0.0;
    for (var k = 0u; k < params.depth; k++) {
      by_x += dot(x[inputs + k], x[inputs + k]);
    }
    for (var k = 0u; k < params.width; k++) {
      by_d += dot(d[errors + k], d[errors + k]);
      both += dot(d[errors + k], by_bounded[errors + k]);
    }
    let norm = params.coefficient * sqrt(by_x) * sqrt(by_d);
    let factors = shrink(norm, params.bound);
    let by_factor = factors.y * both * params.coefficient * params.coefficient;
    for (var k = 0u; k < params.width; k++) {
      out[errors + k] = fma(vec4<f32>(factors.x), by_bounded[errors + k], by_factor * by_x * d[errors + k]);
    }
    let more = ends[token].w * by_factor * by_d;
    for (var k = 0u; k < params.depth; k++) {
      dx[inputs + k] += more * x[inputs + k];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
