// Sine and cosine of position * theta, where theta comes as a fraction of a turn in 64 bits: its
// product with a position is exact in the turns that count, so that no position is too far, and a
// driver's own sine may be off by 5e-4.

// The upper 32 bits of a product.
fn upper_half(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let left = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let right = (a & 0xffffu) * (b >> 16u) + (left & 0xffffu);
  return (a >> 16u) * (b >> 16u) + (left >> 16u) + (right >> 16u);
}

// Sine, then cosine.
fn waves(position: u32, turn: vec2<u32>) -> vec2<f32> {
  let fraction = position * turn.x + upper_half(position, turn.y);
  let quarter = (fraction + 0x20000000u) >> 30u;
  let x = f32(bitcast<i32>(fraction - (quarter << 30u))) * 1.4629180792671596e-9; // 2 pi / 2^32
  let y = x * x;
  // At most pi / 4, where the terms left out are below 2e-9.
  let sine = x * fma(y, fma(y, fma(y, fma(y, 2.7557319e-6, -1.9841270e-4), 8.3333333e-3), -0.16666667), 1.0);
  let cosine = fma(y, fma(y, fma(y, fma(y, fma(y, -2.7557319e-7, 2.4801587e-5), -1.3888889e-3), 4.1666667e-2), -0.5), 1.0);
  let turned = select(vec2<f32>(sine, cosine), vec2<f32>(cosine, -sine), (quarter & 1u) == 1u);
  return select(turned, -turned, (quarter & 2u) == 2u);
}
