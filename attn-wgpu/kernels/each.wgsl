// The entry point, behind its attributes, of kernels that do `one(index)` for each index below
// `params.count`. An invocation owns one index.
fn each(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index < params.count {
    one(index);
  }
}

#import "linear"
