// Cotangents of a layer's weights and momentum, from those behind a piece to those before it, in place:
//   Om <- beta Om + (diag(betas) R)^T D,   Sg <- momentum Sg + kappa Om + (diag(kappas) R)^T D,
// with the shares of the piece's last token.
// An invocation owns four rows by four columns of both. No workgroup memory; needs six storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(2) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(3) var<storage, read> momentum: array<f32>; // [planes, all]
@group(0) @binding(4) var<storage, read_write> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(5) var<storage, read_write> s: array<vec4<f32>>; // [planes, 4 depth, chunks]

fn one(index: u32) {
  // A tile is of rows of the weights here.
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  var weights: array<vec4<f32>, TILE>;
  var moving: array<vec4<f32>, TILE>;
  for (var t = 0u; t < at.length; t++) {
    let token = at.start + t;
    let end = ends[token];
    let own = d[token * chunks + at.column];
    let values = r[token * depth + at.row / 4u];
    let by_w = values * end.x;
    let by_s = values * end.y;
    #unroll
    for (var i = 0u; i < TILE; i++) {
      weights[i] = fma(vec4<f32>(by_w[i]), own, weights[i]);
      moving[i] = fma(vec4<f32>(by_s[i]), own, moving[i]);
    }
  }
  let end = ends[at.start + at.length - 1u];
  let left = momentum[at.plane * params.all + at.piece];
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let cell = (at.plane * 4u * depth + at.row + i) * chunks + at.column;
    let before = w[cell];
    w[cell] = fma(vec4<f32>(end.x), before, weights[i]);
    s[cell] = fma(vec4<f32>(left), s[cell], fma(vec4<f32>(end.y), before, moving[i]));
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
