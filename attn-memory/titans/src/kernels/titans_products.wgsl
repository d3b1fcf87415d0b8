      // sums += held * weights: ROWS rows by four columns, over four steps.
      #unroll
      for (var q = 0u; q < 4; q++) {
        #unroll
        for (var i = 0u; i < ROWS; i++) {
#ifdef SUBGROUP
          let value = vec4<f32>(subgroupBroadcast(held[i / EXCHANGE][q], i % EXCHANGE));
#else
          let value = vec4<f32>(held[i][q]);
#endif
          sums[i] = fma(value, weights[q], sums[i]);
        }
      }
