// The output of one token: the mean of what it got from the lists that it entered, those with a limit
// above 0; epsilon is added to their number. 0 if there is none.
// An invocation owns four elements of a plane. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32, clusters: u32,
  // vec4s of a row.
  chunks: u32,
  epsilon: f32,
  // New tokens of a plane, and which of them it is.
  tokens: u32, at: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, clusters, chunks]
@group(0) @binding(1) var<storage, read> limits: array<u32>; // [planes, clusters]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let plane = index / params.chunks;
  let chunk = index - plane * params.chunks;
  var sum = vec4<f32>(0.0);
  var entered = 0.0;
  for (var c = 0u; c < params.clusters; c++) {
    let list = plane * params.clusters + c;
    if limits[list] > 0u {
      sum += x[list * params.chunks + chunk];
      entered += 1.0;
    }
  }
  let row = plane * params.tokens + params.at;
  out[row * params.chunks + chunk] = sum / select(1.0, entered + params.epsilon, entered > 0.0);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
