// What the cotangent d of a layer's results gives the pairs of a piece: T = (D E^T) * C, and the
// cotangent of C, (R X^T) * (D E^T). Both are still to be multiplied by the steps of their columns.
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
  // vec4s of a row of errors.
  width: u32,
  // Whether the cotangent of C is added to.
  add: u32,
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(3) var<storage, read> error: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(4) var<storage, read> shares: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(5) var<storage, read_write> pairs: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(6) var<storage, read_write> d_shares: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let chunks = params.chunks;
  // Tiles above the diagonal are read by nobody.
  if at.row >= at.length || TILE * at.column > at.row + TILE - 1u {
    return;
  }
  let last = at.start + at.length - 1u;
  var reads: array<vec4<f32>, TILE>;
  for (var k = 0u; k < params.depth; k++) {
    var others: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      others[j] = x[min(at.start + TILE * at.column + j, last) * params.depth + k];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let own = r[min(at.start + at.row + i, last) * params.depth + k];
      reads[i] += vec4<f32>(dot(own, others[0]), dot(own, others[1]), dot(own, others[2]), dot(own, others[3]));
    }
  }
  var sums: array<vec4<f32>, TILE>;
  for (var k = 0u; k < params.width; k++) {
    var others: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      others[j] = error[min(at.start + TILE * at.column + j, last) * params.width + k];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let own = d[min(at.start + at.row + i, last) * params.width + k];
      sums[i] += vec4<f32>(dot(own, others[0]), dot(own, others[1]), dot(own, others[2]), dot(own, others[3]));
    }
  }
  let columns = vec4<u32>(TILE * at.column) + vec4<u32>(0u, 1u, 2u, 3u);
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let row = at.row + i;
    if row < at.length {
      let cell = (at.start + row) * chunks + at.column;
      let seen = columns <= vec4<u32>(row);
      pairs[cell] = select(vec4<f32>(0.0), sums[i] * shares[cell], seen);
      let before = select(vec4<f32>(0.0), d_shares[cell], seen & vec4<bool>(params.add == 1u));
      d_shares[cell] = select(vec4<f32>(0.0), fma(reads[i], sums[i], before), seen);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
