// The entry point, behind its attributes, of kernels that do `one(index)` for each index below
// `params.count`. An invocation owns ITEMS indices, WORKGROUP apart.
fn each(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    if index >= params.count {
      break;
    }
    one(index);
  }
}

#import "linear"
