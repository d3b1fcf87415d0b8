// Products of the queries of a cluster with its keys, scale q_i . k_j, for tiles in which some query
// sees a key (limits: the first so many). What no query sees may be anything, and is not to be read.
// An invocation owns four queries by four keys. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // First cluster of the output.
  first: u32,
  rows: u32, keys: u32,
  // vec4s of a row.
  chunks: u32,
  scale: f32,
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [clusters, rows, chunks]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [clusters, keys, chunks]
@group(0) @binding(2) var<storage, read> limits: array<u32>; // [clusters, rows]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [clusters from first on, rows, keys / 4]

const TILE = 4u;

fn one(index: u32) {
  let key_tiles = (params.keys + 3u) / 4u;
  let row_tiles = (params.rows + TILE - 1u) / TILE;
  let tile = index / key_tiles;
  let key_tile = index - tile * key_tiles;
  let cluster = tile / row_tiles;
  let first_row = TILE * (tile - cluster * row_tiles);
  let plane = params.first + cluster;

  var rows: array<u32, TILE>;
  var sums: array<vec4<f32>, TILE>;
  var most = 0u;
  #unroll
  for (var i = 0u; i < TILE; i++) {
    rows[i] = plane * params.rows + min(first_row + i, params.rows - 1u);
    sums[i] = vec4<f32>(0.0);
    most = max(most, limits[rows[i]]);
  }
  if 4u * key_tile >= most {
    return;
  }
  let keys = plane * params.keys + min(vec4<u32>(4u * key_tile) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.keys - 1u));
  for (var c = 0u; c < params.chunks; c++) {
    let at = keys * params.chunks + c;
    let k0 = k[at.x];
    let k1 = k[at.y];
    let k2 = k[at.z];
    let k3 = k[at.w];
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let x = q[rows[i] * params.chunks + c];
      sums[i] += vec4<f32>(dot(x, k0), dot(x, k1), dot(x, k2), dot(x, k3));
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if first_row + i < params.rows {
      out[(cluster * params.rows + first_row + i) * key_tiles + key_tile] = params.scale * sums[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
