// The powers of a head's decay, exp(-slope n), for n up to the tokens of a block. The host made them:
// an exponential of the device may be off by more than a rounding.
fn power(head: u32, n: u32) -> f32 {
  return powers[(params.first_head + head) * (params.block + 1u) + n];
}
