// Derivatives by the products q . k of signal rows and keys, dz = scale p (g - mean) / rows with g the
// cotangent of the key's document; 0 outside of documents, whose keys may hold anything.
// An invocation owns a row and four keys. No workgroup memory; needs eight storage buffers.

struct Params {
  count: u32,
  rows: u32, signal: u32,
  // Query heads of a key head.
  group: u32,
  // vec4s of a row.
  chunks: u32,
  tokens: u32,
  // Of the logits in base 2, and of the derivative.
  scale: f32, factor: f32,
  // First vec4, and vec4s from one to the next: batch entry, head, token.
  q_start: u32, q_batch: u32, q_head: u32, q_row: u32,
  k_start: u32, k_batch: u32, k_head: u32, k_row: u32,
  // First element of the cotangents, and of one prompt's to the next's.
  d_start: u32, d_prompt: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [batch, heads, signal, chunks]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [batch, heads_kv, tokens, chunks]
@group(0) @binding(2) var<storage, read> heads: array<u32>; // [rows / signal]: the chosen query heads
@group(0) @binding(3) var<storage, read> owners: array<u32>; // [batch, tokens / 4 in whole, 4]: document, or NONE
@group(0) @binding(4) var<storage, read> total: array<vec2<f32>>; // [batch, rows]: largest, sum
@group(0) @binding(5) var<storage, read> means: array<f32>; // [batch, rows]
@group(0) @binding(6) var<storage, read> d_scores: array<f32>; // [batch, documents]
@group(0) @binding(7) var<storage, read_write> dz: array<vec4<f32>>; // [batch, rows, tokens / 4 in whole]

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn blockrank_logit_grad(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let tiles = (params.tokens + 3u) / 4u;
  let line = index / tiles;
  let first = 4u * (index - line * tiles);
  let prompt = line / params.rows;
  let row = line - prompt * params.rows;
  let head = heads[row / params.signal];
  let q_at = params.q_start + prompt * params.q_batch + head * params.q_head + (row % params.signal) * params.q_row;
  let k_at = params.k_start + prompt * params.k_batch + (head / params.group) * params.k_head;
  let keys = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.tokens - 1u));
  let at = vec4<u32>(k_at) + keys * params.k_row;
  var z = vec4<f32>(0.0);
  for (var c = 0u; c < params.chunks; c++) {
    let x = q[q_at + c];
    z += vec4<f32>(dot(x, k[at.x + c]), dot(x, k[at.y + c]), dot(x, k[at.z + c]), dot(x, k[at.w + c]));
  }
  let all = total[line];
  let p = exp2(clamp(params.scale * z - all.x, vec4<f32>(-200.0), vec4<f32>(1.0))) / max(all.y, 1e-30);
  let o = 4u * (prompt * tiles) + first;
  let owner = vec4<u32>(owners[o], owners[o + 1u], owners[o + 2u], owners[o + 3u]);
  let inside = owner != vec4<u32>(NONE);
  let d = vec4<u32>(params.d_start + prompt * params.d_prompt) + select(vec4<u32>(0u), owner, inside);
  let g = vec4<f32>(d_scores[d.x], d_scores[d.y], d_scores[d.z], d_scores[d.w]);
  dz[index] = select(vec4<f32>(0.0), params.factor * p * (g - means[line]), inside);
}
