// One token of linear attention with decay, per head: S <- decay S + k^T v, in place, and out = q S.
//
// A workgroup owns COLUMNS chunks of four columns of one head's state; PARTS lanes share the rows of
// a chunk, and what they add up goes through 16 * WORKGROUP bytes of workgroup memory where they are
// several. Needs no subgroups; six storage buffers.

struct Params {
  entries: u32, heads: u32, group: u32, first_head: u32,
  // Entries of a head in the table of powers.
  powers: u32,
  depth4: u32, width4: u32,
  column_tiles: u32,
  q: Place, k: Place, v: Place, state: Place, out: Place,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"

@group(0) @binding(0) var<storage, read> q: array<Source>; // strided [B, H, 1, 4 depth4]
@group(0) @binding(1) var<storage, read> k: array<Source>; // strided [B, H, 1, 4 depth4]
@group(0) @binding(2) var<storage, read> v: array<Source>; // strided [B, H, 1, 4 width4]
@group(0) @binding(3) var<storage, read> powers: array<f32>; // [H, powers]
@group(0) @binding(4) var<storage, read_write> state: array<vec4<f32>>; // [B, H, D, E]
@group(0) @binding(5) var<storage, read_write> out: array<Source>; // strided [B, H, 1, 4 width4]

const WORKGROUP = COLUMNS * PARTS;

#ifdef SHARED
var<workgroup> partial: array<vec4<f32>, WORKGROUP>;
#endif

@compute @workgroup_size(WORKGROUP)
fn linear_decode(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let item = linear_group(workgroup, counts);
  let column4 = item % params.column_tiles * COLUMNS + lane % COLUMNS;
  let entry = item / params.column_tiles;
  if entry >= params.entries {
    return;
  }
  let batch = entry / params.heads;
  let head = entry % params.heads;
  let numbers = vec3<u32>(batch, head, 0u);
  let kv_numbers = vec3<u32>(batch, head / params.group, 0u);
  // Read once: behind every store drivers would read them again.
  let depth4 = params.depth4;
  let width4 = params.width4;
  let is_column = column4 < width4;
  let column = min(column4, width4 - 1u);
  let q_at = at_place(numbers, params.q);
  let k_at = at_place(kv_numbers, params.k);
  let state_at = at_place(numbers, params.state) + column;
  let value = unpack_source(v[at_place(kv_numbers, params.v) + column]);
  let decay = vec4<f32>(powers[(params.first_head + head) * params.powers + 1u]);

  var sum = vec4<f32>(0.0);
  for (var step = lane / COLUMNS; step < depth4; step += PARTS) {
    let query = unpack_source(q[q_at + step]);
    let key = unpack_source(k[k_at + step]);
    #unroll
    for (var i = 0u; i < 4; i++) {
      let at = state_at + (4u * step + i) * width4;
      let next = fma(vec4<f32>(key[i]), value, decay * state[at]);
      // Lanes beyond the last column must not write.
      if is_column {
        state[at] = next;
      }
      sum = fma(vec4<f32>(query[i]), next, sum);
    }
  }
#ifdef SHARED
  partial[lane] = sum;
  workgroupBarrier();
  if lane >= COLUMNS {
    return;
  }
  sum = vec4<f32>(0.0);
  #unroll
  for (var part = 0u; part < PARTS; part++) {
    sum += partial[part * COLUMNS + lane];
  }
#endif
  if is_column {
    out[at_place(numbers, params.out) + column] = pack_source(sum);
  }
}
