// Step 2: rows normalised, (x - mean x) / sqrt(var x + epsilon); elements behind the width become 0.
// An invocation owns one row. No workgroup memory; needs two storage buffers.

struct Params {
  count: u32,
  // Elements and vec4s of a row.
  width: u32, chunks: u32,
  epsilon: f32,
  heads: u32, tokens: u32,
  // vec4s: where x starts, and from one batch entry, head and token to the next.
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // strided [batch, heads, tokens, chunks]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads, tokens, chunks]

fn total(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

fn inside(chunk: u32, width: u32, value: vec4<f32>) -> vec4<f32> {
  let elements = vec4<u32>(4u * chunk) + vec4<u32>(0u, 1u, 2u, 3u);
  return select(vec4<f32>(0.0), value, elements < vec4<u32>(width));
}

fn one(row: u32) {
  let given = params;
  let plane = row / given.tokens;
  let entry = plane / given.heads;
  let head = plane - entry * given.heads;
  let token = row - plane * given.tokens;
  let at = given.start + entry * given.stride_0 + head * given.stride_1 + token * given.stride_2;
  let width = f32(given.width);
  var sums = vec4<f32>(0.0);
  for (var c = 0u; c < given.chunks; c++) {
    sums += inside(c, given.width, x[at + c]);
  }
  let mean = total(sums) / width;
  var squares = vec4<f32>(0.0);
  for (var c = 0u; c < given.chunks; c++) {
    let deviation = inside(c, given.width, x[at + c] - mean);
    squares = fma(deviation, deviation, squares);
  }
  let inverse = inverseSqrt(total(squares) / width + given.epsilon);
  for (var c = 0u; c < given.chunks; c++) {
    out[row * given.chunks + c] = inside(c, given.width, (x[at + c] - mean) * inverse);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
