// What of a token is left behind its piece, and its gates: C_m, omega, eta and alpha.
// An invocation owns four tokens. No workgroup memory; needs five storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> eta: array<f32>; // [planes, tokens]
@group(0) @binding(1) var<storage, read> alpha: array<f32>; // [planes, tokens]
@group(0) @binding(2) var<storage, read> shares: array<f32>; // [planes, tokens, chunk to a multiple of four]
// beta, kappa, omega and the step.
@group(0) @binding(3) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(4) var<storage, read_write> tail: array<vec4<f32>>; // [planes, tokens]

fn one(index: u32) {
  let at = place(index);
  let width = (params.chunk + 3u) / 4u * 4u;
  let last = at.start + at.length - 1u;
  for (var row = at.row; row < min(at.row + TILE, at.length); row++) {
    let token = at.start + row;
    tail[token] = vec4<f32>(shares[last * width + row], ends[token].z, eta[token], alpha[token]);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
