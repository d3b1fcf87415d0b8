// A group of LANES neighbouring lanes shares columns of few rows. Its lanes take turns at the depth, and
// their sums are added by shuffles (SUBGROUP) or through 16 * WORKGROUP bytes of workgroup memory.

const GROUPS = WORKGROUP / LANES;

#ifdef SUBGROUP
#else
var<workgroup> partial: array<vec4<f32>, WORKGROUP>;
#endif

// The sum over the lanes of a group; all lanes of a workgroup call it alike.
fn add_lanes(value: vec4<f32>, lane: u32) -> vec4<f32> {
  var sum = value;
#ifdef SUBGROUP
  #unroll
  for (var i = 0u; i < LANE_BITS; i++) {
    sum += subgroupShuffleXor(sum, 1u << i);
  }
#else
  if LANES > 1u {
    workgroupBarrier();
    partial[lane] = value;
    workgroupBarrier();
    sum = vec4<f32>(0.0);
    #unroll
    for (var i = 0u; i < LANES; i++) {
      sum += partial[lane / LANES * LANES + i];
    }
  }
#endif
  return sum;
}
