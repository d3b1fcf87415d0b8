// The sum of the source's rows that fall on one row of a table, without a workgroup of its own.
// In: places `first .. end` of `order`, which belong to that row, and a chunk. Out: the chunk's sum, in the
// order of the places. Rows of weight 0 are not read.
fn sum_of(first: u32, end: u32, chunk: u32) -> vec4<f32> {
  let given = params;
  var sum = vec4<f32>(0.0);
  for (var at = first; at < end; at++) {
    let place = order[at];
    let source_at = given.source_start + place / given.share * given.source_stride + chunk;
#ifdef WEIGHTS
    let weight = weights[given.weights_start + place];
    if weight != 0.0 {
      sum = fma(vec4<f32>(weight), unpack_source(source[source_at]), sum);
    }
#else
    sum += unpack_source(source[source_at]);
#endif
  }
  return sum;
}
