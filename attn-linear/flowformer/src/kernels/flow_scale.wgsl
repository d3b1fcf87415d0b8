// Rows times numbers: out = f (x + shift), 0 where f is, and behind the last row. Heads may share rows of x.
// An invocation owns four elements. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32, heads: u32,
  // Rows of a head of f, and of out.
  rows: u32, padded: u32,
  // vec4s of a row.
  chunks: u32,
  group: u32,
  // Of x, in vec4s.
  x_start: u32, x_batch: u32, x_head: u32, x_token: u32,
  shift: f32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // strided [batch, heads_x, rows, chunks]
@group(0) @binding(1) var<storage, read> f: array<f32>; // [batch, heads, rows]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads, padded, chunks]

@compute @workgroup_size(WORKGROUP)
fn flow_scale(
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
  let plane = row / given.padded;
  let t = row - plane * given.padded;
  let batch = plane / given.heads;
  let head = (plane - batch * given.heads) / given.group;
  var value = vec4<f32>(0.0);
  if t < given.rows {
    let factor = f[plane * given.rows + t];
    // Padding may hold anything.
    if factor != 0.0 {
      value = factor * (x[given.x_start + batch * given.x_batch + head * given.x_head + t * given.x_token + c] + given.shift);
    }
  }
  out[index] = value;
}
