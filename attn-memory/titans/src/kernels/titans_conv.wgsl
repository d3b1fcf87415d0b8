// The short convolution of every feature on its own, causal, and the activation behind it:
// y_t = silu(sum_j w[j] x_(t-j)). Rows before the call's first token stand in front of x.
// An invocation owns one element. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  tokens: u32, features: u32,
  // Rows of w, and elements of one, of which the first ones are used.
  kernel: u32, stride: u32,
}

#import "activation"

@group(0) @binding(0) var<storage, read> x: array<f32>; // [batch, kernel - 1 + tokens, features]
@group(0) @binding(1) var<storage, read> w: array<f32>; // [kernel, stride]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [batch, tokens, features]

fn one(index: u32) {
  let given = params;
  let row = index / given.features;
  let feature = index - row * given.features;
  let own = row + (row / given.tokens + 1u) * (given.kernel - 1u);
  var sum = 0.0;
  for (var j = 0u; j < given.kernel; j++) {
    sum = fma(w[j * given.stride + feature], x[(own - j) * given.features + feature], sum);
  }
  y[index] = activate(vec4<f32>(sum)).x;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
