  // Begins an entry point with attention_arguments: its item of work, its lane, and where the lane's
  // vec4s lie.
  let item = linear_group(workgroup, counts);
  if item >= params.total {
    return;
  }
#ifdef SUBGROUP
  // The order that shuffles see.
  let lane = subgroup * subgroup_size + subgroup_lane;
#else
  let lane = local_index;
  lane_index = local_index;
#endif
  let lane_in_group = lane % LANES;
  place_chunks(lane_in_group);
