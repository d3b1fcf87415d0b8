// The cotangent of the first layer's errors, d = p sg'(z) with p = E W^T: of p, and what is left of z.
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_piece"
#import "activation"
#import "titans_slope"

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(4) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(5) var<storage, read_write> dp: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(6) var<storage, read_write> dz: array<vec4<f32>>; // [planes, tokens, chunks]

#import "titans_by_rows"

fn one(index: u32) {
  let at = place(index);
  if at.row >= at.length {
    return;
  }
  let p = by_rows(at, 4u * ((at.piece * params.planes + at.plane) * params.chunks + at.column));
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let token = at.start + at.row + i;
      let cell = token * params.chunks + at.column;
      let own = d[cell] * ends[token].w;
      dp[cell] = own * slope(z[cell]);
      dz[cell] = own * p[i] * curvature(z[cell]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
