// The last step back: with s = sigmoid,
// out = s (1 - s) (core + f_0 (V_0 + shift) + f_1 V_1 + f_2 (V_2 + shift) + V_3), added over the heads that
// share a row of out. The vectors V are of each token, or one set for all of them. An invocation owns four
// elements of a row of out. No workgroup memory; needs seven storage buffers.

struct Params {
  count: u32, heads_out: u32, rows: u32, chunks: u32, group: u32,
  // Rows of a head of the sigmoids and of the core.
  padded: u32,
  // vec4s from a token's vectors to the next one's, and from a head's.
  v_token: u32, v_head: u32,
  shift: f32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> sigmoids: array<vec4<f32>>; // [batch, heads, padded, chunks]
@group(0) @binding(1) var<storage, read> core: array<vec4<f32>>; // [batch, heads, padded, chunks]
@group(0) @binding(2) var<storage, read> f_0: array<f32>; // [batch, heads, rows]
@group(0) @binding(3) var<storage, read> f_1: array<f32>; // [batch, heads, rows]
@group(0) @binding(4) var<storage, read> f_2: array<f32>; // [batch, heads, rows]
@group(0) @binding(5) var<storage, read> vectors: array<vec4<f32>>; // [batch, heads, rows or 1, 4, chunks]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads_out, rows, chunks]

@compute @workgroup_size(WORKGROUP)
fn flow_back(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let row = index / given.chunks;
  let c = index - row * given.chunks;
  let plane_out = row / given.rows;
  let t = row - plane_out * given.rows;
  var sum = vec4<f32>(0.0);
  for (var member = 0u; member < given.group; member++) {
    let plane = plane_out * given.group + member;
    let at = (plane * given.padded + t) * given.chunks + c;
    let v_at = plane * given.v_head + t * given.v_token + c;
    let number = plane * given.rows + t;
    var part = core[at] + vectors[v_at + 3u * given.chunks];
    part = fma(vec4<f32>(f_0[number]), vectors[v_at] + given.shift, part);
    part = fma(vec4<f32>(f_1[number]), vectors[v_at + given.chunks], part);
    part = fma(vec4<f32>(f_2[number]), vectors[v_at + 2u * given.chunks] + given.shift, part);
    let s = sigmoids[at];
    sum = fma(s * (1.0 - s), part, sum);
  }
  out[index] = sum;
}
