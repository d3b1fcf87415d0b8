// What the shares of the state before a piece get from the cotangents of that behind it: <Om, W>,
// <Om, S> and <Sg, S> of each row of a layer's weights.
// An invocation owns one row. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  // Rows of the layer, vec4s of a row.
  rows: u32, chunks: u32,
  planes: u32, piece: u32,
  // Rows of all layers, and of those before this one.
  all: u32, before: u32,
}

@group(0) @binding(0) var<storage, read> dw: array<vec4<f32>>; // [planes, rows, chunks]
@group(0) @binding(1) var<storage, read> ds: array<vec4<f32>>; // [planes, rows, chunks]
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>; // [pieces, planes, rows, chunks]
@group(0) @binding(3) var<storage, read> s: array<vec4<f32>>; // [pieces, planes, rows, chunks]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [pieces, planes, all]

fn one(index: u32) {
  let plane = index / params.rows;
  let row = index - plane * params.rows;
  let kept = params.piece * params.planes * params.rows + index;
  var sums = vec4<f32>(0.0);
  for (var k = 0u; k < params.chunks; k++) {
    let by_w = dw[index * params.chunks + k];
    let moving = s[kept * params.chunks + k];
    let weights = w[kept * params.chunks + k];
    sums += vec4<f32>(dot(by_w, weights), dot(by_w, moving), dot(ds[index * params.chunks + k], moving), 0.0);
  }
  out[(params.piece * params.planes + plane) * params.all + params.before + row] = sums;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
