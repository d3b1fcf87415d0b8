// Gradient of the sinks: d_sink_h = - sum over batch and queries of exp(sink_h - lse) * delta.
// A workgroup owns one head; lanes take turns at the rows, and one lane adds up their sums in a
// fixed order: 4 * WORKGROUP bytes of workgroup memory. Needs three storage buffers.

struct Params {
  batch: u32, heads: u32, queries: u32,
}

@group(0) @binding(0) var<storage, read> stats: array<f32>; // lse, delta: [2, B, H, M]
@group(0) @binding(1) var<storage, read> sinks: array<f32>; // [H]
@group(0) @binding(2) var<storage, read_write> d_sinks: array<f32>; // [H]

#import "linear"

const LOG2_E = 1.4426950408889634;

var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn attention_sinks(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let head = linear_group(workgroup, counts);
  if head >= params.heads {
    return;
  }
  let rows = params.batch * params.heads * params.queries;
  var sum = 0.0;
  for (var batch = 0u; batch < params.batch; batch++) {
    let first = (batch * params.heads + head) * params.queries;
    for (var query = lane; query < params.queries; query += WORKGROUP) {
      let weight = exp2((sinks[head] - stats[first + query]) * LOG2_E);
      sum = fma(-weight, stats[rows + first + query], sum);
    }
  }
  sums[lane] = sum;
  workgroupBarrier();
  if lane == 0u {
    var total = 0.0;
    for (var i = 0u; i < WORKGROUP; i++) {
      total += sums[i];
    }
    d_sinks[head] = total;
  }
}
