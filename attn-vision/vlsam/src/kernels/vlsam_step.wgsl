// One layer of the flow's row form, for some rows at once: with u A = 1/H sum_h W_h y_h, y_h = u S_h,
//   w = u + u A,  flow += rho^power w,  u = w         (at the first layer of the model w = u A)
// and at the end flow *= rho^last_power. Heads are added in order, so that every run gives the same bits.
// An invocation owns a token of a row. No workgroup memory; needs five storage buffers.

struct Params {
  // Tokens times rows; rows; heads.
  count: u32, width: u32, heads: u32,
  // Of y, in elements: start and strides of heads, tokens and rows.
  y_start: u32, y_head: u32, y_token: u32, y_row: u32,
  weights_start: u32,
  power: u32,
  last_power: u32,
  // 1 at the first layer of the model, which comes last.
  is_last: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> y: array<f32>; // strided [heads, tokens, width]
@group(0) @binding(1) var<storage, read> weights: array<f32>; // [heads]
@group(0) @binding(2) var<storage, read> column_factor: array<f32>; // [tokens]
@group(0) @binding(3) var<storage, read_write> u: array<f32>; // [tokens, width]
@group(0) @binding(4) var<storage, read_write> flow: array<f32>; // [tokens, width]

fn power(base: f32, exponent: u32) -> f32 {
  var product = 1.0;
  for (var i = 0u; i < exponent; i++) {
    product *= base;
  }
  return product;
}

@compute @workgroup_size(WORKGROUP)
fn vlsam_step(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let token = index / given.width;
  let row = index - token * given.width;
  let at = given.y_start + token * given.y_token + row * given.y_row;
  var sum = 0.0;
  for (var head = 0u; head < given.heads; head++) {
    sum = fma(weights[given.weights_start + head], y[at + head * given.y_head], sum);
  }
  let mean = sum / f32(given.heads);
  let now = select(u[index] + mean, mean, given.is_last == 1u);
  let factor = column_factor[token];
  u[index] = now;
  flow[index] = fma(power(factor, given.power), now, flow[index]) * power(factor, given.last_power);
}
