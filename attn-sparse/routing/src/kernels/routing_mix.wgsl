// Weighted sums over keys: out_i = sum_j a_ij x_j over the keys j that query i sees (limits: the first
// so many); 0 for a query that sees none. Other weights and keys are not read into the sums.
// An invocation owns four queries by four elements. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // First cluster of the weights.
  first: u32,
  rows: u32, keys: u32,
  // vec4s of a row of x.
  chunks: u32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [clusters from first on, rows, keys / 4]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [clusters, keys, chunks]
@group(0) @binding(2) var<storage, read> limits: array<u32>; // [clusters, rows]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [clusters, rows, chunks]

const TILE = 4u;

fn one(index: u32) {
  let key_tiles = (params.keys + 3u) / 4u;
  let row_tiles = (params.rows + TILE - 1u) / TILE;
  let tile = index / params.chunks;
  let chunk = index - tile * params.chunks;
  let cluster = tile / row_tiles;
  let first_row = TILE * (tile - cluster * row_tiles);
  let plane = params.first + cluster;

  var seen: array<u32, TILE>;
  var sums: array<vec4<f32>, TILE>;
  var most = 0u;
  #unroll
  for (var i = 0u; i < TILE; i++) {
    seen[i] = limits[plane * params.rows + min(first_row + i, params.rows - 1u)];
    sums[i] = vec4<f32>(0.0);
    most = max(most, seen[i]);
  }
  for (var tile_of_keys = 0u; 4u * tile_of_keys < most; tile_of_keys++) {
    var values: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      let key = min(4u * tile_of_keys + j, params.keys - 1u);
      values[j] = x[(plane * params.keys + key) * params.chunks + chunk];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let row = cluster * params.rows + min(first_row + i, params.rows - 1u);
      let weights = a[row * key_tiles + tile_of_keys];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        let term = fma(vec4<f32>(weights[j]), values[j], sums[i]);
        sums[i] = select(sums[i], term, 4u * tile_of_keys + j < seen[i]);
      }
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if first_row + i < params.rows {
      out[(plane * params.rows + first_row + i) * params.chunks + chunk] = sums[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
