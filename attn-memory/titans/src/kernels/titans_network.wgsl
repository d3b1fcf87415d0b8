// A layer of the memory on the rows of a piece: z = X W. The last layer leaves the error z - v; others
// leave z and its activation.
// An invocation owns four rows by four columns. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"
#import "activation"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
#ifdef LAST
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> error: array<vec4<f32>>; // [planes, tokens, chunks]
#else
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> h: array<vec4<f32>>; // [planes, tokens, chunks]
#endif

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var sums: array<vec4<f32>, TILE>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(4u * (at.plane * depth + k) + j) * chunks + at.column];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let values = x[min(at.start + at.row + i, last) * depth + k];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        sums[i] = fma(vec4<f32>(values[j]), weights[j], sums[i]);
      }
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let cell = (at.start + at.row + i) * chunks + at.column;
#ifdef LAST
      error[cell] = sums[i] - v[cell];
#else
      z[cell] = sums[i];
      h[cell] = activate(sums[i]);
#endif
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
