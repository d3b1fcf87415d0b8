// In kernels that add up products over tokens: own rows of `x`, of four tokens from `t` on, of which the lane loads its
// share; each token has ROWS / 4 vec4s of them.
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let chunk = j * EXCHANGE + lane;
      let token = t + chunk / ROWS4;
      let cell = min(at.start + token, last) * depth + min(at.row / 4u + chunk % ROWS4, depth - 1u);
      held[j] = select(vec4<f32>(0.0), x[cell], token < at.length);
    }
