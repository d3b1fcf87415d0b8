  // Arguments of the entry points whose lanes form groups: the workgroup's number, and the lane's,
  // by subgroup where lanes shuffle.
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
#ifdef SUBGROUP
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_size) subgroup_size: u32,
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
#else
  @builtin(local_invocation_index) local_index: u32,
#endif
