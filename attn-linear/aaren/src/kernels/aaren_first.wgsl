// Gradients of the state before the first token, with a = e^(lse_0 - lse_1): d_out = a R_1 and
// d_lse = o_0 . (a R_1) - a rho_1 + a lambda_1. An invocation owns a head. No workgroup memory; needs six
// storage buffers.

struct Params {
  count: u32, tokens: u32,
  // Elements of an output; words of a carry, and where rho and lambda are in it.
  dim: u32, width: u32, rho: u32,
}

#import "linear"
#import "weight"

@group(0) @binding(0) var<storage, read> carry: array<f32>; // [batch, heads, width]
@group(0) @binding(1) var<storage, read> lse: array<f32>; // [batch, heads, tokens]
@group(0) @binding(2) var<storage, read> state_lse: array<f32>; // [batch, heads]
@group(0) @binding(3) var<storage, read> state_out: array<f32>; // [batch, heads, dim]
@group(0) @binding(4) var<storage, read_write> d_out: array<f32>; // [batch, heads, dim]
@group(0) @binding(5) var<storage, read_write> d_lse: array<f32>; // [batch, heads]

@compute @workgroup_size(WORKGROUP)
fn aaren_first(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let plane = linear_group(workgroup, counts) * WORKGROUP + lane;
  if plane >= given.count {
    return;
  }
  let a = weight(state_lse[plane], lse[plane * given.tokens]);
  let at = plane * given.width;
  var sum = a * (carry[at + given.rho + 1u] - carry[at + given.rho]);
  for (var e = 0u; e < given.dim; e++) {
    let gradient = a * carry[at + e];
    d_out[plane * given.dim + e] = gradient;
    sum = fma(state_out[plane * given.dim + e], gradient, sum);
  }
  d_lse[plane] = sum;
}
