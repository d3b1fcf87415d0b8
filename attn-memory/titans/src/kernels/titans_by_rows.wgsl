// Four rows times four rows of weights, A W^T, for kernels that bind `a` and `w`.
fn by_rows(at: Place, first: u32) -> array<vec4<f32>, TILE> {
  let depth = params.depth;
  let last = at.start + at.length - 1u;
  var sums: array<vec4<f32>, TILE>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(first + j) * depth + k];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let own = a[min(at.start + at.row + i, last) * depth + k];
      sums[i] += vec4<f32>(dot(own, weights[0]), dot(own, weights[1]), dot(own, weights[2]), dot(own, weights[3]));
    }
  }
  return sums;
}
