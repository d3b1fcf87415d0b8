// Head weights, the mean over the rows of each row's largest probability: of the largest logit m and the
// log-sum-exp z, e^(m - z) (LOGITS), or as it is given. A row that sees nothing counts as 0.
// A workgroup owns a head; its sums go through 4 * WORKGROUP bytes of workgroup memory. Needs up to three
// storage buffers.

struct Params {
  heads: u32,
  rows: u32,
  // First elements.
  max_start: u32,
  lse_start: u32,
  weights_start: u32,
}

#import "linear"

const LOG2_E = 1.4426950408889634;

@group(0) @binding(0) var<storage, read> row_max: array<f32>; // [heads, rows]
@group(0) @binding(1) var<storage, read_write> weights: array<f32>; // [heads]
#ifdef LOGITS
@group(0) @binding(2) var<storage, read> lse: array<f32>; // [heads, rows]
#endif

var<workgroup> sums: array<f32, WORKGROUP>;

fn probability(at: u32) -> f32 {
  let largest = row_max[params.max_start + at];
#ifdef LOGITS
  let power = clamp((largest - lse[params.lse_start + at]) * LOG2_E, -200.0, 0.0);
  return select(0.0, exp2(power), largest > -1e29);
#else
  return largest;
#endif
}

@compute @workgroup_size(WORKGROUP)
fn vlsam_head_weights(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let head = linear_group(workgroup, counts);
  if head >= params.heads {
    return;
  }
  var own = 0.0;
  for (var row = lane; row < params.rows; row += WORKGROUP) {
    own += probability(head * params.rows + row);
  }
  sums[lane] = own;
  workgroupBarrier();
  if lane == 0u {
    var sum = 0.0;
    for (var other = 0u; other < WORKGROUP; other++) {
      sum += sums[other];
    }
    weights[params.weights_start + head] = sum / f32(params.rows);
  }
}
