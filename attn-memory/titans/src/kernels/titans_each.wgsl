// The entry point, behind its attributes, of kernels that do `one(index)` for each index below
// `params.count`. An invocation owns one index.
fn each(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // The host folds any number of workgroups into three dimensions.
  let group = workgroup.x + counts.x * (workgroup.y + counts.y * workgroup.z);
  let index = group * WORKGROUP + lane;
  if index < params.count {
    one(index);
  }
}
