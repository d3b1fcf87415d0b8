// Rows of logits become probabilities of the keys that the query sees (limits: the first so many), in
// place. With BACKWARD, rows of derivatives by probabilities become those by products:
// d_j = scale p_j (d_j - sum_t p_t d_t). In the last group of four, what is not seen becomes 0.
// An invocation owns one row. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  // First row of x.
  first: u32,
  // vec4s of a row.
  chunks: u32,
  scale: f32,
}

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>; // [rows from first on, chunks]
@group(0) @binding(1) var<storage, read> limits: array<u32>; // [rows]
#ifdef BACKWARD
@group(0) @binding(2) var<storage, read> p: array<vec4<f32>>; // [rows from first on, chunks]
#endif

const LOWEST = -3e38;

fn seen(chunk: u32, limit: u32) -> vec4<bool> {
  return vec4<u32>(4u * chunk) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit);
}

fn one(index: u32) {
  let limit = limits[params.first + index];
  let start = index * params.chunks;
  let used = (limit + 3u) / 4u;
#ifdef BACKWARD
  var products = vec4<f32>(0.0);
  for (var c = 0u; c < used; c++) {
    products += select(vec4<f32>(0.0), p[start + c] * x[start + c], seen(c, limit));
  }
  let mean = (products.x + products.y) + (products.z + products.w);
  for (var c = 0u; c < used; c++) {
    let d = params.scale * p[start + c] * (x[start + c] - mean);
    x[start + c] = select(vec4<f32>(0.0), d, seen(c, limit));
  }
#else
  var tops = vec4<f32>(LOWEST);
  for (var c = 0u; c < used; c++) {
    tops = max(tops, select(vec4<f32>(LOWEST), x[start + c], seen(c, limit)));
  }
  let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
  var sums = vec4<f32>(0.0);
  for (var c = 0u; c < used; c++) {
    let weight = select(vec4<f32>(0.0), exp(x[start + c] - top), seen(c, limit));
    x[start + c] = weight;
    sums += weight;
  }
  let sum = (sums.x + sums.y) + (sums.z + sums.w);
  for (var c = 0u; c < used; c++) {
    x[start + c] /= sum;
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "each"
