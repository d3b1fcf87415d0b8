// Sums of one number a lane over the lanes of a workgroup: of those before the lane, and of all.
// Integers, so that the order of adding changes nothing. Must be called by all lanes alike.

struct Before {
  before: u32,
  all: u32,
}

var<workgroup> lane_sums: array<u32, WORKGROUP>;

fn sum_before(value: u32, lane: u32) -> Before {
  // What an earlier call left may still be read.
  workgroupBarrier();
  lane_sums[lane] = value;
  workgroupBarrier();
  for (var step = 1u; step < WORKGROUP; step *= 2u) {
    var left = 0u;
    if lane >= step {
      left = lane_sums[lane - step];
    }
    workgroupBarrier();
    lane_sums[lane] += left;
    workgroupBarrier();
  }
  return Before(lane_sums[lane] - value, lane_sums[WORKGROUP - 1u]);
}
