// What the backward kernels need of each row: its lse, and delta = d_out . out - d_lse.
// An invocation owns one row. No workgroup memory. Needs five storage buffers.

struct Params {
  rows: u32, heads: u32, queries: u32, dim_v: u32,
  // vec4s: start, batch, head, token.
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  d_out_start: u32, d_out_batch: u32, d_out_head: u32, d_out_token: u32,
  // Words.
  lse_start: u32, d_lse_start: u32, stats_start: u32, stats_stride: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(1) var<storage, read> d_out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(2) var<storage, read> lse: array<u32>; // [B, H, M]
@group(0) @binding(3) var<storage, read> d_lse: array<f32>; // [B, H, M]
@group(0) @binding(4) var<storage, read_write> stats: array<u32>; // lse, delta: [B, H, M]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn attention_delta(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = linear_group(workgroup, counts) * WORKGROUP + lane;
  if row >= params.rows {
    return;
  }
  let plane = row / params.queries;
  let batch = plane / params.heads;
  let head = plane % params.heads;
  let query = row % params.queries;
  let out_at = params.out_start + batch * params.out_batch + head * params.out_head
    + query * params.out_token;
  let d_out_at = params.d_out_start + batch * params.d_out_batch + head * params.d_out_head
    + query * params.d_out_token;
  var sums = vec4<f32>(0.0);
  for (var i = 0u; i < params.dim_v; i++) {
    sums = fma(unpack(out[out_at + i]), unpack(d_out[d_out_at + i]), sums);
  }
  var delta = (sums.x + sums.y) + (sums.z + sums.w);
#ifdef LSE_COTANGENT
  delta -= d_lse[params.d_lse_start + row];
#endif
  let at = params.stats_start + row;
  stats[at] = lse[params.lse_start + row];
  stats[at + params.stats_stride] = bitcast<u32>(delta);
}
