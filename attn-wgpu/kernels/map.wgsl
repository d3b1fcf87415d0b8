// Elementwise: out = f(a), or f(a, b), with any strides of rows. The flags ADD, GATE, SOFT_CAP, SCALE name f;
// without one it is a conversion of the storage type.
// An invocation owns ITEMS vec4s of the target, WORKGROUP apart. No workgroup memory.

struct Params {
  rows: u32, chunks: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  a: Place, b: Place, out: Place,
  // The cap, or the factor.
  number: f32,
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

@group(0) @binding(0) var<storage, read> a: array<Source>; // strided [e0, e1, e2, 4 chunks]
@group(0) @binding(1) var<storage, read_write> out: array<Target>; // strided [e0, e1, e2, 4 chunks]
#ifdef BINARY
@group(0) @binding(2) var<storage, read> b: array<Source>; // strided [e0, e1, e2, 4 chunks]
#endif

fn mapped(numbers: vec3<u32>, chunk: u32, given: Params) -> vec4<f32> {
  let left = unpack_source(a[at_place(numbers, given.a) + chunk]);
#ifdef BINARY
  let right = unpack_source(b[at_place(numbers, given.b) + chunk]);
#ifdef GATE
  return activate(left) * right;
#else
  return left + right;
#endif
#else
#ifdef SOFT_CAP
  return soft_cap(left, given.number);
#else
#ifdef SCALE
  return given.number * left;
#else
  return left;
#endif
#endif
#endif
}

@compute @workgroup_size(WORKGROUP)
fn map(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Read once: behind every store drivers would read them again.
  let given = params;
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    let row = index / given.chunks;
    let chunk = index - row * given.chunks;
    let numbers = numbers_of(row, given.extent_1, given.extent_2);
    if row < given.rows {
      out[at_place(numbers, given.out) + chunk] = pack_target(mapped(numbers, chunk, given));
    }
  }
}
