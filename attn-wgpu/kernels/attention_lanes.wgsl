// LANES neighbouring lanes form a group and share rows: each holds every LANES-th vec4 of a head
// dimension, and partial products are added over the group, by shuffles (SUBGROUP) or through
// 4 * WORKGROUP * SUMS bytes of workgroup memory.
#ifdef SUBGROUP
#else
var<private> lane_index: u32;
var<workgroup> partial: array<f32, WORKGROUP * SUMS>;
#endif

// Must be called by all lanes of a workgroup alike.
fn add_lanes(sums: ptr<function, array<f32, SUMS>>) {
#ifdef SUBGROUP
  #unroll
  for (var step = 0u; step < LANE_BITS; step++) {
    #unroll
    for (var i = 0u; i < SUMS; i++) {
      (*sums)[i] += subgroupShuffleXor((*sums)[i], 1u << step);
    }
  }
#else
  if LANES > 1u {
    workgroupBarrier();
    #unroll
    for (var i = 0u; i < SUMS; i++) {
      partial[i * WORKGROUP + lane_index] = (*sums)[i];
    }
    workgroupBarrier();
    let group_start = lane_index / LANES * LANES;
    #unroll
    for (var i = 0u; i < SUMS; i++) {
      var sum = 0.0;
      #unroll
      for (var lane = 0u; lane < LANES; lane++) {
        sum += partial[i * WORKGROUP + group_start + lane];
      }
      (*sums)[i] = sum;
    }
  }
#endif
}
