// Derivatives by rows x from those by their normalised form x^ = (x - mean x) / sqrt(var x + epsilon):
// (d - mean d - x^ mean(d x^)) / sqrt(var x + epsilon). With COMMIT, d is factor (x^ - mu) for the
// centroid mu of the row, 0 without one, and sum (x^ - mu)^2 is written, too.
// An invocation owns one row. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  // Elements and vec4s of a row.
  width: u32, chunks: u32,
  epsilon: f32,
  // Rows of a plane, heads, and centroids of a head.
  tokens: u32, heads: u32, clusters: u32,
  factor: f32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]
#ifdef COMMIT
@group(0) @binding(2) var<storage, read> centroids: array<vec4<f32>>; // [heads, clusters, chunks]
@group(0) @binding(3) var<storage, read> assigned: array<u32>; // [rows]
@group(0) @binding(4) var<storage, read_write> losses: array<f32>; // [rows]
#else
@group(0) @binding(2) var<storage, read> d: array<vec4<f32>>; // [rows, chunks]
#endif

fn total(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

// Elements behind the width count as 0.
fn inside(chunk: u32, value: vec4<f32>) -> vec4<f32> {
  let elements = vec4<u32>(4u * chunk) + vec4<u32>(0u, 1u, 2u, 3u);
  return select(vec4<f32>(0.0), value, elements < vec4<u32>(params.width));
}

fn one(row: u32) {
  let start = row * params.chunks;
  let width = f32(params.width);
  var sums = vec4<f32>(0.0);
  for (var c = 0u; c < params.chunks; c++) {
    sums += inside(c, x[start + c]);
  }
  let mean = total(sums) / width;
  var squares = vec4<f32>(0.0);
  for (var c = 0u; c < params.chunks; c++) {
    let deviation = inside(c, x[start + c] - mean);
    squares = fma(deviation, deviation, squares);
  }
  let inverse = inverseSqrt(total(squares) / width + params.epsilon);

#ifdef COMMIT
  let cluster = assigned[row];
  let head = row / params.tokens % params.heads;
  let centroid = (head * params.clusters + select(cluster, 0u, cluster == NONE)) * params.chunks;
  var errors = vec4<f32>(0.0);
  let factor = params.factor;
#endif
  var plain = vec4<f32>(0.0);
  var products = vec4<f32>(0.0);
  for (var c = 0u; c < params.chunks; c++) {
    let normed = inside(c, (x[start + c] - mean) * inverse);
#ifdef COMMIT
    let off = inside(c, normed - centroids[centroid + c]);
    errors = fma(off, off, errors);
    let given = factor * off;
#else
    let given = inside(c, d[start + c]);
#endif
    plain += given;
    products = fma(given, normed, products);
  }
  let mean_d = total(plain) / width;
  let mean_product = total(products) / width;
  for (var c = 0u; c < params.chunks; c++) {
    let normed = inside(c, (x[start + c] - mean) * inverse);
#ifdef COMMIT
    let given = factor * (normed - centroids[centroid + c]);
#else
    let given = d[start + c];
#endif
    let value = inside(c, (given - mean_d - normed * mean_product) * inverse);
#ifdef COMMIT
    out[start + c] = select(value, vec4<f32>(0.0), cluster == NONE);
#else
    out[start + c] = value;
#endif
  }
#ifdef COMMIT
  losses[row] = select(total(errors), 0.0, cluster == NONE);
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "each"
