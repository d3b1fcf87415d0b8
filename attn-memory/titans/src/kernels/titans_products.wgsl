// One step of a product in a kernel on rows (titans_rows.wgsl): sums += held * weights. `held` has four elements
// of each of ROWS rows, every lane its share of them, and `weights` a row of four columns for each element.
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
