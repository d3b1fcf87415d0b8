// The end of all matmul kernels: what happens to four neighbouring sums of a row before they are
// stored. With SUMS_IN the sums go on from those over the depth so far; with SUMS_OUT the depth is
// not yet at its end, and they are kept as they are.

#import "activation"

// What a sum starts with. Places beyond the result start with anything.
fn first_sum(batch: u32, row: u32, column4: u32) -> vec4<f32> {
#ifdef SUMS_IN
  let inside = min(row, params.rows - 1u) * params.sums.w + min(column4, (params.columns - 1u) / 4u);
  return sums_so_far[entry(params.sums, batch) + inside];
#else
  return vec4<f32>(0.0);
#endif
}

fn read_bias(column4: u32) -> vec4<f32> {
  let chunk = bias[params.bias_start + column4];
#ifdef BIAS_F16
  return unpack_f16(chunk);
#else
#ifdef BIAS_BF16
  return unpack_bf16(chunk);
#else
#ifdef BIAS
  return chunk;
#else
  return vec4<f32>(0.0);
#endif
#endif
#endif
}

// Four neighbouring elements of a tensor like the result.
fn unpack_out(chunk: OutChunk) -> vec4<f32> {
#ifdef OUT_F16
  return unpack_f16(chunk);
#else
#ifdef OUT_BF16
  return unpack_bf16(chunk);
#else
  return chunk;
#endif
#endif
}

fn pack_out(value: vec4<f32>) -> OutChunk {
#ifdef OUT_F16
  return pack_f16(value);
#else
#ifdef OUT_BF16
  return pack_bf16(value);
#else
  return value;
#endif
#endif
}

fn store(sum: vec4<f32>, batch: u32, row: u32, column4: u32) {
  if row >= params.rows || column4 * 4u >= params.columns {
    return;
  }
#ifdef SUMS_OUT
  sums_so_far[entry(params.sums, batch) + row * params.sums.w + column4] = sum;
#else
  var value = sum;
#ifdef BIAS
  value += read_bias(column4);
#endif
  value = activate(value);
#ifdef RESIDUAL
  value += unpack_out(residual[entry(params.residual, batch) + row * params.residual.w + column4]);
#endif
#ifdef OUT_ELEMENTS
  // Rows that are no whole chunks, of f32: out is counted in elements.
  let at = entry(params.out, batch) + row * params.out.w + column4 * 4u;
  let count = min(params.columns - column4 * 4u, 4u);
  for (var i = 0u; i < count; i++) {
#ifdef ACCUMULATE
    out[at + i] += value[i];
#else
    out[at + i] = value[i];
#endif
  }
#else
  let at = entry(params.out, batch) + row * params.out.w + column4;
#ifdef ACCUMULATE
  value += unpack_out(out[at]);
#endif
  out[at] = pack_out(value);
#endif
#endif
}
