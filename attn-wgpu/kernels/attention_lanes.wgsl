// LANES neighbouring lanes form a group and share rows: each holds every LANES-th vec4 of a head
// dimension, and partial products are added over the group, by shuffles (SUBGROUP) or through
// 4 * WORKGROUP * SUMS bytes of workgroup memory.

const GROUPS = WORKGROUP / LANES;

// Where this lane's vec4s lie inside a key (or query) and inside a value (or output). Lanes beyond
// the dimension repeat its last vec4, and multiply it by zero.
var<private> chunk_k: array<u32, CHUNKS_QK>;
var<private> chunk_v: array<u32, CHUNKS_V>;
var<private> inside_k: array<bool, CHUNKS_QK>;
var<private> inside_v: array<bool, CHUNKS_V>;

fn place_chunks(lane_in_group: u32) {
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    let chunk = c * LANES + lane_in_group;
    chunk_k[c] = min(chunk, dim_qk() - 1u);
    inside_k[c] = chunk < dim_qk();
  }
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    let chunk = c * LANES + lane_in_group;
    chunk_v[c] = min(chunk, dim_v() - 1u);
    inside_v[c] = chunk < dim_v();
  }
}

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
