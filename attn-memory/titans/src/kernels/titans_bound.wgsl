// Errors within a bound of the norm of their gradients, coefficient |x| |d|.
// An invocation owns four tokens. No workgroup memory; needs three storage buffers.

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
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, width]

fn one(index: u32) {
  let at = place(index);
  for (var row = at.row; row < min(at.row + TILE, at.length); row++) {
    let inputs = (at.start + row) * params.depth;
    let errors = (at.start + row) * params.width;
    var by_x = 0.0;
    var by_d = 0.0;
    for (var k = 0u; k < params.depth; k++) {
      by_x += dot(x[inputs + k], x[inputs + k]);
    }
    for (var k = 0u; k < params.width; k++) {
      by_d += dot(d[errors + k], d[errors + k]);
    }
    let norm = params.coefficient * sqrt(by_x) * sqrt(by_d);
    let factor = shrink(norm, params.bound).x;
    for (var k = 0u; k < params.width; k++) {
      out[errors + k] = factor * d[errors + k];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
