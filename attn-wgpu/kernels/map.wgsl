// Elementwise: out = f(a), or f(a, b), with any strides of rows. The flags ADD, GATE, SOFT_CAP name f;
// without one it is a conversion of the storage type.
// An invocation owns ITEMS vec4s of the target, WORKGROUP apart. No workgroup memory.

struct Params {
  rows: u32, chunks: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  a: Place, b: Place, out: Place,
  cap: f32,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"
#ifdef GATE
#import "activation"
#endif
#ifdef SOFT_CAP
#import "soft_cap"
#endif

@group(0) @binding(0) var<storage, read> a: array<Source>;
@group(0) @binding(1) var<storage, read_write> out: array<Target>;
#ifdef BINARY
@group(0) @binding(2) var<storage, read> b: array<Source>;
#endif

fn mapped(row: u32, chunk: u32) -> vec4<f32> {
  let left = unpack_source(a[row_at(row, params.a) + chunk]);
#ifdef BINARY
  let right = unpack_source(b[row_at(row, params.b) + chunk]);
#ifdef GATE
  return activate(left) * right;
#else
  return left + right;
#endif
#else
#ifdef SOFT_CAP
  return soft_cap(left, params.cap);
#else
  return left;
#endif
#endif
}

@compute @workgroup_size(WORKGROUP)
fn map(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    let row = index / params.chunks;
    let chunk = index % params.chunks;
    if row < params.rows {
      out[row_at(row, params.out) + chunk] = pack_target(mapped(row, chunk));
    }
  }
}
