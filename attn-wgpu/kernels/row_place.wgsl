// Rows of a tensor [e0, extent_1, extent_2, width] in row-major order. A place is a start and three
// strides.
struct Place {
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}

// The three numbers of a row.
fn numbers_of(row: u32, extent_1: u32, extent_2: u32) -> vec3<u32> {
  let plane = row / extent_2;
  let outer = plane / extent_1;
  return vec3<u32>(outer, plane - outer * extent_1, row - plane * extent_2);
}

fn at_place(numbers: vec3<u32>, place: Place) -> u32 {
  return place.start + numbers.x * place.stride_0 + numbers.y * place.stride_1 + numbers.z * place.stride_2;
}
