  // Begins an entry point whose workgroups own ROWS rows, LANES neighbouring lanes each. Lanes behind
  // the last row repeat it, so that all lanes come to all barriers, and must not write.
  let first_row = linear_group(workgroup, counts) * ROWS;
  if first_row >= params.rows {
    return;
  }
#ifdef SUBGROUP
  // The order that shuffles see.
  lane = subgroup * subgroup_size + subgroup_lane;
#else
  lane = local_index;
#endif
  width = params.width;
  let in_row = lane % LANES;
  let row = min(first_row + lane / LANES, params.rows - 1u);
  let is_row = first_row + lane / LANES < params.rows;
  let numbers = numbers_of(row, params.extent_1, params.extent_2);
