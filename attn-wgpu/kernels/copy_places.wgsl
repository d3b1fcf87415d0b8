// Places of elements in four dimensions, in kernels whose `params` have the extents of the target and
// the digits of a step. Division is dear, so there is one for the first place, and digits are added
// from there on.

fn place_of(index: u32) -> vec4<u32> {
  let rest_2 = index / params.extent_3;
  let rest_1 = rest_2 / params.extent_2;
  return vec4<u32>(rest_1 / params.extent_1, rest_1 % params.extent_1, rest_2 % params.extent_2,
    index % params.extent_3);
}

// The place of one more than the last digit, or of the next.
fn carried(place: vec4<u32>) -> vec4<u32> {
  var next = place;
  let carry_3 = next.w >= params.extent_3;
  next.w -= select(0u, params.extent_3, carry_3);
  next.z += u32(carry_3);
  let carry_2 = next.z >= params.extent_2;
  next.z -= select(0u, params.extent_2, carry_2);
  next.y += u32(carry_2);
  let carry_1 = next.y >= params.extent_1;
  next.y -= select(0u, params.extent_1, carry_1);
  next.x += u32(carry_1);
  return next;
}

fn step_on(place: vec4<u32>) -> vec4<u32> {
  return carried(place + vec4<u32>(params.step_0, params.step_1, params.step_2, params.step_3));
}
