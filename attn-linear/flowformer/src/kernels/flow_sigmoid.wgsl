// out = sigmoid(x) in f32, row by row; 0 for rows that do not count (VALID), behind the last row, and behind
// the width. Heads that share a row of x get a copy each. An invocation owns four elements. No workgroup
// memory; needs up to three storage buffers.

struct Params {
  count: u32, heads: u32,
  // Rows of a head of x, and of out.
  rows: u32, padded: u32,
  // Elements of a row of x, and vec4s of one of out.
  width: u32, chunks: u32,
  group: u32,
  // Of x, in elements.
  x_start: u32, x_batch: u32, x_head: u32, x_token: u32,
  // Of valid, in words.
  valid_start: u32, valid_batch: u32, valid_token: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [batch, heads_x, rows, width]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads, padded, chunks]
#ifdef VALID
@group(0) @binding(2) var<storage, read> valid: array<u32>; // strided [batch, rows]
#endif

@compute @workgroup_size(WORKGROUP)
fn flow_sigmoid(
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
  let first = 4u * (index - row * given.chunks);
  let plane = row / given.padded;
  let t = row - plane * given.padded;
  let batch = plane / given.heads;
  let head = (plane - batch * given.heads) / given.group;
  var value = vec4<f32>(0.0);
  var counts_here = t < given.rows;
#ifdef VALID
  counts_here = counts_here && valid[given.valid_start + batch * given.valid_batch + min(t, given.rows - 1u) * given.valid_token] != 0u;
#endif
  if counts_here {
    let at = given.x_start + batch * given.x_batch + head * given.x_head + t * given.x_token;
    #unroll
    for (var i = 0u; i < 4u; i++) {
      if first + i < given.width {
        value[i] = 1.0 / (1.0 + exp(-clamp(x[at + first + i], -80.0, 80.0)));
      }
    }
  }
  out[index] = value;
}
