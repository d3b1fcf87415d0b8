// The entry point, behind its attributes, of kernels that do `tile(place, first_column, lane)` for the rows
// and columns of titans_rows.wgsl. An invocation owns the column first_column + lane, which may be too large,
// and loads every EXCHANGE'th row from row `lane` on.
fn tiles(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
#ifdef SUBGROUP
  @builtin(subgroup_invocation_id) lane: u32,
#else
  @builtin(local_invocation_index) local: u32,
#endif
) {
  // The host folds any number of workgroups into three dimensions.
  let group = workgroup.x + counts.x * (workgroup.y + counts.y * workgroup.z);
#ifdef SUBGROUP
  let column_tiles = (params.chunks + WORKGROUP - 1u) / WORKGROUP;
  let item = group / column_tiles;
  let column = (group - item * column_tiles) * WORKGROUP;
#else
  let lane = 0u;
  let index = group * WORKGROUP + local;
  let item = index / params.chunks;
  let column = index - item * params.chunks;
#endif
  if item < params.count {
    tile(place(item), column, lane);
  }
}
