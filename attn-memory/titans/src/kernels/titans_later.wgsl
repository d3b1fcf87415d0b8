  // sums += P^T D: what the rows of a piece from each one's own on have of it. Loads of pairs are shared like
  // those of rows; those of earlier rows have no factor of 0, as they may be no numbers.
  for (var t = at.row; t < at.length; t += 4u) {
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let chunk = j * EXCHANGE + lane;
      let token = min(at.start + t + chunk / (ROWS / 4u), last);
      held[j] = pairs[token * pair_chunks + min(at.row / 4u + chunk % (ROWS / 4u), pair_chunks - 1u)];
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      let later = d[min(at.start + t + q, last) * chunks + own];
      let inside = t + q < at.length;
      #unroll
      for (var i = 0u; i < ROWS; i++) {
        const chunk = q * (ROWS / 4u) + i / 4u;
#ifdef SUBGROUP
        let value = subgroupBroadcast(held[chunk / EXCHANGE][i % 4u], chunk % EXCHANGE);
#else
        let value = held[chunk][i % 4u];
#endif
        sums[i] = select(sums[i], fma(vec4<f32>(value), later, sums[i]), inside && at.row + i <= t + q);
      }
    }
  }
