// A tensor [batch, heads, tokens, width]: where it starts, and its strides. For parameters: no workgroup owns
// anything here.
struct Place {
  start: u32, stride_0: u32, stride_1: u32, stride_2: u32,
}
