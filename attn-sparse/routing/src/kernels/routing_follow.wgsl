// Moving sums of tokens: sums = keep * sums + take * (sum of all batch entries), in place. With MEANS
// also the means: sums over smoothed counts, (n + added) T / (T + C added) for n tokens of T in C
// centroids; a centroid with less than `dead` T / C keeps its mean.
// An invocation owns four elements of a centroid. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32, batch: u32,
  // vec4s of a row, and centroids of a head.
  chunks: u32, clusters: u32,
  keep: f32, take: f32, added: f32, dead: f32,
}

@group(0) @binding(0) var<storage, read> given: array<vec4<f32>>; // [batch, heads * clusters, chunks]
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>; // [heads * clusters, chunks]
#ifdef MEANS
@group(0) @binding(2) var<storage, read> counts: array<f32>; // [heads * clusters]
@group(0) @binding(3) var<storage, read_write> means: array<vec4<f32>>; // [heads * clusters, chunks]
#endif

fn one(index: u32) {
  var came = vec4<f32>(0.0);
  for (var b = 0u; b < params.batch; b++) {
    came += given[b * params.count + index];
  }
  let sum = params.keep * sums[index] + params.take * came;
  sums[index] = sum;
#ifdef MEANS
  let centroid = index / params.chunks;
  let first = centroid / params.clusters * params.clusters;
  var total = 0.0;
  for (var c = 0u; c < params.clusters; c++) {
    total += counts[first + c];
  }
  let clusters = f32(params.clusters);
  let smoothed = (counts[centroid] + params.added) * (total / (total + clusters * params.added));
  if smoothed >= params.dead * total / clusters {
    means[index] = sum / smoothed;
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "each"
