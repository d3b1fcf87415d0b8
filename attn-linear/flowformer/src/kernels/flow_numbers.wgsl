// Formulas of one token of a head, named by a flag; x, y and z are numbers of the token, (valid, t, n, ratio) is
// what it is, and padding gets 0, or a logit that stands for -inf.
//
// RATE    t / x                                                     x: a flow
// SINK    alloc = sigmoid(I^ ratio), and alloc / I                  x: t I^ -> I^, y: I
// SOURCE  logit = clamp(O^)                                         x: t O^ -> O^
// COMP    n e^(x - lse)                                             x: a logit, y: lse
// OWN     x y
// DECAY   e^(x - x of the next token), 1 behind the last one        x: lse
// D_SINK  d(t I^) = x (1 - alloc) ratio / t, and dI = -x / I        x: g . o, y: alloc, z: I
// D_RATE  z - t x / I^2                                             x: by the rate, y: I, z: dI so far
// D_SOURCE  d(t O^) = (x y - y rho / n) / t within the clamp        x: by comp, y: comp, z: rho, w: O^
//
// An invocation owns a token of a head. No workgroup memory; needs up to seven storage buffers.

struct Params {
  count: u32, heads: u32, rows: u32,
  // Steps of y or z from token to token and from head to head.
  step: u32, plane: u32,
  clamp: f32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> marks: array<vec4<f32>>; // [batch, rows]
@group(0) @binding(1) var<storage, read_write> x: array<f32>; // [batch, heads, rows]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [batch, heads, rows]
#ifdef HAS_Y
@group(0) @binding(3) var<storage, read> y: array<f32>; // [batch, heads, rows], or steps of lse
#endif
#ifdef HAS_Z
@group(0) @binding(4) var<storage, read> z: array<f32>; // [batch, heads, rows], or steps of rho
#endif
#ifdef SINK
@group(0) @binding(4) var<storage, read_write> more: array<f32>; // [batch, heads, rows]
#endif
#ifdef D_SINK
@group(0) @binding(5) var<storage, read_write> more: array<f32>; // [batch, heads, rows]
#endif
#ifdef D_SOURCE
@group(0) @binding(5) var<storage, read> w: array<f32>; // [batch, heads, rows]
#endif

const LOWEST = -3e38;

@compute @workgroup_size(WORKGROUP)
fn flow_numbers(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let plane = index / given.rows;
  let token = index - plane * given.rows;
  let mark = marks[plane / given.heads * given.rows + token];
  let valid = mark.x > 0.0;
  let t = max(mark.y, 1.0);
  let value = x[index];
#ifdef RATE
  out[index] = select(0.0, t / value, valid);
#endif
#ifdef SINK
  let conserved = value / t;
  let allocation = select(0.0, 1.0 / (1.0 + exp(-clamp(conserved * mark.w, -80.0, 80.0))), valid && mark.w >= 0.0);
  x[index] = select(0.0, conserved, valid);
  out[index] = allocation;
  more[index] = select(0.0, allocation / y[index], valid);
#endif
#ifdef SOURCE
  let conserved = value / t;
  x[index] = select(0.0, conserved, valid);
  out[index] = select(LOWEST, clamp(conserved, -given.clamp, given.clamp), valid);
#endif
#ifdef COMP
  let lse = y[plane * given.plane + token * given.step];
  out[index] = select(0.0, mark.z * exp(min(value - lse, 0.0)), valid);
#endif
#ifdef OWN
  out[index] = select(0.0, value * y[index], valid);
#endif
#ifdef DECAY
  let is_last = token + 1u == given.rows;
  let next = x[select(index + 1u, index, is_last)];
  out[index] = select(exp(min(value - next, 0.0)), 0.0, value <= -1e30);
#endif
#ifdef D_SINK
  out[index] = select(0.0, value * (1.0 - y[index]) * mark.w / t, valid && mark.w >= 0.0);
  more[index] = select(0.0, -value / z[index], valid);
#endif
#ifdef D_RATE
  let flow = y[index];
  out[index] = select(0.0, z[index] - t * value / flow / flow, valid);
#endif
#ifdef D_SOURCE
  let competition = y[index];
  let rho = z[plane * given.plane + token * given.step];
  let within = abs(w[index]) <= given.clamp;
  out[index] = select(0.0, competition * (value - rho / max(mark.z, 1.0)) / t, valid && within);
#endif
}
