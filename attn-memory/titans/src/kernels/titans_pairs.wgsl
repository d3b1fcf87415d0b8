// (R X^T) * C within pieces, 0 for later tokens, which are not read.
// An invocation owns four rows by four columns. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read> shares: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> pairs: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length || TILE * at.column >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var sums: array<vec4<f32>, TILE>;
  if TILE * at.column <= at.row + TILE - 1u {
    for (var k = 0u; k < depth; k++) {
      var others: array<vec4<f32>, 4>;
      #unroll
      for (var j = 0u; j < 4u; j++) {
        others[j] = x[min(at.start + TILE * at.column + j, last) * depth + k];
      }
      #unroll
      for (var i = 0u; i < TILE; i++) {
        let own = r[min(at.start + at.row + i, last) * depth + k];
        sums[i] += vec4<f32>(dot(own, others[0]), dot(own, others[1]), dot(own, others[2]), dot(own, others[3]));
      }
    }
  }
  let columns = vec4<u32>(TILE * at.column) + vec4<u32>(0u, 1u, 2u, 3u);
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let row = at.row + i;
    if row < at.length {
      let cell = (at.start + row) * chunks + at.column;
      pairs[cell] = select(vec4<f32>(0.0), sums[i] * shares[cell], columns <= vec4<u32>(row));
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
