// Weighted sums over queries: out_j = sum_i a_ij x_i over the queries i that see key j (limits: the
// first so many keys). Other weights and queries are not read into the sums.
// An invocation owns four keys by four elements. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // First cluster of the weights.
  first: u32,
  rows: u32, keys: u32,
  // vec4s of a row of x.
  chunks: u32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [clusters from first on, rows, keys / 4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [clusters, rows, chunks]
@group(0) @binding(2) var<storage, read> limits: array<u32>; // [clusters, rows]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [clusters, keys, chunks]

fn one(index: u32) {
  let key_tiles = (params.keys + 3u) / 4u;
  let tile = index / params.chunks;
  let chunk = index - tile * params.chunks;
  let cluster = tile / key_tiles;
  let key_tile = tile - cluster * key_tiles;
  let plane = params.first + cluster;

  var sums: array<vec4<f32>, 4>;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    sums[j] = vec4<f32>(0.0);
  }
  for (var row = 0u; row < params.rows; row++) {
    let seen = limits[plane * params.rows + row];
    if 4u * key_tile < seen {
      let weights = a[(cluster * params.rows + row) * key_tiles + key_tile];
      let value = x[(plane * params.rows + row) * params.chunks + chunk];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        let term = fma(vec4<f32>(weights[j]), value, sums[j]);
        sums[j] = select(sums[j], term, 4u * key_tile + j < seen);
      }
    }
  }
  #unroll
  for (var j = 0u; j < 4u; j++) {
    if 4u * key_tile + j < params.keys {
      out[(plane * params.keys + 4u * key_tile + j) * params.chunks + chunk] = sums[j];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
