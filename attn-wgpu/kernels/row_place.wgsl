// Rows of a tensor [e0, extent_1, extent_2, width] in row-major order. A place is a start and three
// strides.
struct Place {
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}

fn row_at(row: u32, place: Place) -> u32 {
  let plane = row / params.extent_2;
  return place.start + plane / params.extent_1 * place.stride_0
    + plane % params.extent_1 * place.stride_1 + row % params.extent_2 * place.stride_2;
}
