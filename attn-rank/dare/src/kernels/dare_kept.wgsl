// Ids of the behaviours that a search kept, from those of all of them, NONE in unused places. With LOOK_UP
// their scores, too, where the search was by something else. With STORED ids are those of a kept history,
// whose slots count from its end.
//
// An invocation owns one place. No workgroup memory; needs up to five storage buffers.

struct Params {
  count: u32, keep: u32,
  // Behaviours of a request, or of the history that was searched.
  length: u32,
  // Rows of the history in front of that.
  first: u32,
}

#ifdef STORED
alias Ids = vec2<u32>;
#else
alias Ids = vec4<u32>;
#endif

@group(0) @binding(0) var<storage, read> numbers: array<u32>; // [rows, keep]
@group(0) @binding(1) var<storage, read> ids: array<Ids>; // [rows, length], or [first + length]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>; // [rows, keep]
#ifdef LOOK_UP
@group(0) @binding(3) var<storage, read> scores: array<f32>; // [rows, length]
@group(0) @binding(4) var<storage, read_write> kept_scores: array<f32>; // [rows, keep]
#endif

#import "linear"

const NONE = 0xffffffffu;
const MASKED = -3e38;

@compute @workgroup_size(WORKGROUP)
fn dare_kept(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let number = numbers[index];
  var found = vec4<u32>(NONE);
  var score = MASKED;
  if number != NONE {
#ifdef STORED
    let own = ids[given.first + number];
    found = vec4<u32>(own.x, own.y, given.length - number, 1u);
#else
    let at = index / given.keep * given.length + number;
    found = ids[at];
#ifdef LOOK_UP
    score = scores[at];
#endif
#endif
  }
  out[index] = found;
#ifdef LOOK_UP
  kept_scores[index] = score;
#endif
}
