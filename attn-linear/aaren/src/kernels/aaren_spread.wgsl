// Gradients of keys and values: out = factor * sum f y over the heads that share a key, in order. y is a row
// for each token, or one for all of them. An invocation owns four elements of a row. No workgroup memory;
// needs three storage buffers.

struct Params {
  count: u32, heads_kv: u32, tokens: u32,
  // vec4s of a row of out.
  chunks: u32,
  group: u32,
  // Of y, in vec4s: start and strides of batch entries, heads and tokens.
  y_start: u32, y_batch: u32, y_head: u32, y_token: u32,
  factor: f32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> f: array<f32>; // [batch, heads, tokens]
@group(0) @binding(1) var<storage, read> y: array<vec4<f32>>; // strided [batch, heads, tokens, width]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads_kv, tokens, chunks]

@compute @workgroup_size(WORKGROUP)
fn aaren_spread(
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
  let plane = row / given.tokens;
  let t = row - plane * given.tokens;
  let batch = plane / given.heads_kv;
  let first = (plane - batch * given.heads_kv) * given.group;
  var sum = vec4<f32>(0.0);
  for (var head = first; head < first + given.group; head++) {
    let factor = f[((batch * given.heads_kv * given.group) + head) * given.tokens + t];
    // The row of a token that does not count may hold anything.
    if factor != 0.0 {
      let at = given.y_start + batch * given.y_batch + head * given.y_head + t * given.y_token + c;
      sum = fma(vec4<f32>(factor), y[at], sum);
    }
  }
  out[index] = given.factor * sum;
}
