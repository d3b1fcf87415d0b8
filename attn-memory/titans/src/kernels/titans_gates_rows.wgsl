// The cotangents of momentum and forgetting: sums of what all columns gave a row.
// An invocation owns four tokens. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> keeps: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(1) var<storage, read> moves: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(2) var<storage, read_write> d_eta: array<f32>; // [planes, tokens]
@group(0) @binding(3) var<storage, read_write> d_alpha: array<f32>; // [planes, tokens]

fn one(index: u32) {
  let at = place(index);
  let width = (params.chunk + 3u) / 4u;
  for (var row = at.row; row < min(at.row + TILE, at.length); row++) {
    let token = at.start + row;
    var by_eta = vec4<f32>(0.0);
    var by_alpha = vec4<f32>(0.0);
    for (var k = 0u; k <= row / 4u; k++) {
      let columns = vec4<u32>(4u * k) + vec4<u32>(0u, 1u, 2u, 3u);
      let seen = columns <= vec4<u32>(row);
      by_eta += select(vec4<f32>(0.0), moves[token * width + k], seen);
      by_alpha += select(vec4<f32>(0.0), keeps[token * width + k], seen);
    }
    d_eta[token] = (by_eta.x + by_eta.y) + (by_eta.z + by_eta.w);
    d_alpha[token] = -((by_alpha.x + by_alpha.y) + (by_alpha.z + by_alpha.w));
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
