// Linear number of this workgroup, in any kernel that imports it.
// The host folds any number of workgroups into the three dimensions of a dispatch.
fn linear_group(group: vec3<u32>, counts: vec3<u32>) -> u32 {
  return group.x + counts.x * (group.y + counts.y * group.z);
}
