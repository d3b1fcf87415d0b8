// Rows times weights and times their momentum, transposed: A W^T and A S^T.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs five storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(3) var<storage, read_write> by_w: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(4) var<storage, read_write> by_s: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let first = 4u * ((at.piece * params.planes + at.plane) * chunks + own) * depth;
  var sums: array<vec4<f32>, ROWS>;
  var moved: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    let cell = first + k;
    let weights = transpose(mat4x4<f32>(
      w[cell], w[cell + depth], w[cell + 2u * depth], w[cell + 3u * depth]));
    let moving = transpose(mat4x4<f32>(
      s[cell], s[cell + depth], s[cell + 2u * depth], s[cell + 3u * depth]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = a[rows[j] + k];
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      #unroll
      for (var i = 0u; i < ROWS; i++) {
#ifdef SUBGROUP
        let value = vec4<f32>(subgroupBroadcast(held[i / EXCHANGE][q], i % EXCHANGE));
#else
        let value = vec4<f32>(held[i][q]);
#endif
        sums[i] = fma(value, weights[q], sums[i]);
        moved[i] = fma(value, moving[q], moved[i]);
      }
    }
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      by_w[cell] = sums[i];
      by_s[cell] = moved[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
