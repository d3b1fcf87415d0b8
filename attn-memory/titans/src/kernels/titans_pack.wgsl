// What titans_token reads of a token, side by side: its key, its query, its value, each filled up with zeros
// to whole vec4s, and (step, momentum, forgotten, 0).
// An invocation owns one vec4. No workgroup memory; needs seven storage buffers.

struct Params {
  count: u32,
  heads: u32, tokens: u32,
  dim_qk: u32, dim_v: u32,
  // Where the tensors lie, in elements: start, and strides of batch, heads and tokens.
  k: vec4<u32>, q: vec4<u32>, v: vec4<u32>,
  theta: vec4<u32>, eta: vec4<u32>, alpha: vec4<u32>,
}

@group(0) @binding(0) var<storage, read> k: array<f32>; // strided [B, H, tokens, dim_qk]
@group(0) @binding(1) var<storage, read> q: array<f32>; // strided [B, H, tokens, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<f32>; // strided [B, H, tokens, dim_v]
@group(0) @binding(3) var<storage, read> theta: array<f32>; // strided [B, H, tokens]
@group(0) @binding(4) var<storage, read> eta: array<f32>; // strided [B, H, tokens]
@group(0) @binding(5) var<storage, read> alpha: array<f32>; // strided [B, H, tokens]
@group(0) @binding(6) var<storage, read_write> packed: array<vec4<f32>>; // [planes, tokens, 2 depth + width + 1]

fn at(place: vec4<u32>, row: u32) -> u32 {
  let plane = row / params.tokens;
  let batch = plane / params.heads;
  let head = plane - batch * params.heads;
  let token = row - plane * params.tokens;
  return place.x + batch * place.y + head * place.z + token * place.w;
}

fn one(index: u32) {
  let depth = (params.dim_qk + 3u) / 4u;
  let width = (params.dim_v + 3u) / 4u;
  let all = 2u * depth + width + 1u;
  let row = index / all;
  let item = index - row * all;
  var values = vec4<f32>(0.0);
  if item == all - 1u {
    values = vec4<f32>(theta[at(params.theta, row)], eta[at(params.eta, row)], alpha[at(params.alpha, row)], 0.0);
  } else if item < depth {
    let base = at(params.k, row);
    for (var i = 0u; i < min(4u, params.dim_qk - 4u * item); i++) {
      values[i] = k[base + 4u * item + i];
    }
  } else if item < 2u * depth {
    let first = 4u * (item - depth);
    let base = at(params.q, row);
    for (var i = 0u; i < min(4u, params.dim_qk - first); i++) {
      values[i] = q[base + first + i];
    }
  } else {
    let first = 4u * (item - 2u * depth);
    let base = at(params.v, row);
    for (var i = 0u; i < min(4u, params.dim_v - first); i++) {
      values[i] = v[base + first + i];
    }
  }
  packed[index] = values;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
