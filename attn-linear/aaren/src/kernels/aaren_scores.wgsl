// Gradients of scores: p_t = e^(s_t - lse_t), 0 for a token that does not count, and
// ds_t = p_t (v_t . R_t - rho_t + lambda_t). An invocation owns a token of a head. No workgroup memory; needs
// six storage buffers.

struct Params {
  count: u32,
  // Words of a token's carry, and where rho and lambda are in it.
  width: u32, rho: u32,
}

#import "linear"
#import "weight"

@group(0) @binding(0) var<storage, read> scores: array<f32>; // [batch, heads, tokens]
@group(0) @binding(1) var<storage, read> lse: array<f32>; // [batch, heads, tokens]
@group(0) @binding(2) var<storage, read> products: array<f32>; // v . R [batch, heads, tokens]
@group(0) @binding(3) var<storage, read> carry: array<f32>; // [batch, heads, tokens, width]
@group(0) @binding(4) var<storage, read_write> p: array<f32>; // [batch, heads, tokens]
@group(0) @binding(5) var<storage, read_write> ds: array<f32>; // [batch, heads, tokens]

@compute @workgroup_size(WORKGROUP)
fn aaren_scores(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let score = scores[index];
  let weight = weight(score, lse[index]);
  let at = index * params.width + params.rho;
  let gradient = weight * (products[index] - carry[at] + carry[at + 1u]);
  p[index] = weight;
  // What does not count may hold anything.
  ds[index] = select(gradient, 0.0, score <= EMPTY);
}
