// Choosing the largest of a tile's keys in workgroup memory, and handing them over in order. In: `keys` of
// all elements, `tops`, the largest key of each group of GROUP elements, and cleared `counters`. Out: calls
// of `put(place, key, element)`, largest key first, of equals the smallest element; places without an element
// get key 0. Key 0 is never chosen.
//
// A lower bound of the threshold comes from the groups' largest keys, of which there are few; elements of at
// least it are listed, and each finds its rank. Where equal keys make the list too long, the threshold is
// searched among all elements. Must be called by all lanes of a workgroup alike.

const GROUPS = TILE / GROUP;
// Elements of the list, at least as many as are kept.
const LISTED = 256u;

// Counters: three for each round of a search by two bits, and one for each number.
const ROUNDS = 16u;
// Of a search among 2^(2 ELEMENT_ROUNDS) elements of a tile.
const ELEMENT_ROUNDS = 5u;
const FIRST_EXACT = 48u;
const FIRST_ELEMENT = 96u;
const ENOUGH = 111u;
const ABOVE = 112u;
const PLACES = 113u;
const COUNTERS = 114u;

var<workgroup> keys: array<u32, TILE>;
var<workgroup> tops: array<u32, GROUPS>;
var<workgroup> listed_keys: array<u32, LISTED>;
var<workgroup> listed: array<u32, LISTED>;
var<workgroup> counters: array<atomic<u32>, COUNTERS>;

// Element `i` of a group: neighbouring lanes own neighbouring elements.
fn element_of(group: u32, i: u32) -> u32 {
  let part = group / WORKGROUP;
  return (part * GROUP + i) * WORKGROUP + group - part * WORKGROUP;
}

fn clear_counters(lane: u32) {
  for (var i = lane; i < COUNTERS; i += WORKGROUP) {
    atomicStore(&counters[i], 0u);
  }
}

fn ones(flags: vec3<bool>) -> vec3<u32> {
  return select(vec3<u32>(0u), vec3<u32>(1u), flags);
}

// Adds up what the lanes counted.
fn counted(own: vec3<u32>, slot: u32) -> vec3<u32> {
  if own.x > 0u {
    atomicAdd(&counters[slot], own.x);
  }
  if own.y > 0u {
    atomicAdd(&counters[slot + 1u], own.y);
  }
  if own.z > 0u {
    atomicAdd(&counters[slot + 2u], own.z);
  }
  workgroupBarrier();
  return vec3<u32>(atomicLoad(&counters[slot]), atomicLoad(&counters[slot + 1u]), atomicLoad(&counters[slot + 2u]));
}

// The last of three rising steps that holds.
fn narrowed(value: u32, steps: vec3<u32>, holds: vec3<bool>) -> u32 {
  var next = select(value, steps.x, holds.x);
  next = select(next, steps.y, holds.y);
  return select(next, steps.z, holds.z);
}

fn steps_of(value: u32, shift: u32) -> vec3<u32> {
  return vec3<u32>(value) + (vec3<u32>(1u, 2u, 3u) << vec3<u32>(shift));
}

fn choose(lane: u32, keep: u32) {
  workgroupBarrier();
  var bound = 0u;
  for (var round = 0u; round < ROUNDS; round++) {
    let steps = steps_of(bound, 2u * (ROUNDS - 1u - round));
    var own = vec3<u32>(0u);
    for (var group = lane; group < GROUPS; group += WORKGROUP) {
      own += ones(vec3<u32>(tops[group]) >= steps);
    }
    bound = narrowed(bound, steps, counted(own, 3u * round) >= vec3<u32>(keep));
  }
  bound = max(bound, 1u);

  var enough = 0u;
  for (var group = lane; group < GROUPS; group += WORKGROUP) {
    if tops[group] >= bound {
      for (var i = 0u; i < GROUP; i++) {
        enough += select(0u, 1u, keys[element_of(group, i)] >= bound);
      }
    }
  }
  if enough > 0u {
    atomicAdd(&counters[ENOUGH], enough);
  }
  workgroupBarrier();
  let is_exact = atomicLoad(&counters[ENOUGH]) > LISTED;

  // The threshold itself, and the last of the elements equal to it that is kept. All lanes come to the
  // barriers also where nothing is counted.
  var key = 0u;
  for (var round = 0u; round < ROUNDS; round++) {
    let steps = steps_of(key, 2u * (ROUNDS - 1u - round));
    var own = vec3<u32>(0u);
    if is_exact {
      for (var element = lane; element < TILE; element += WORKGROUP) {
        own += ones(vec3<u32>(keys[element]) >= steps);
      }
    }
    key = narrowed(key, steps, counted(own, FIRST_EXACT + 3u * round) >= vec3<u32>(keep));
  }
  var above = 0u;
  if is_exact {
    for (var element = lane; element < TILE; element += WORKGROUP) {
      above += select(0u, 1u, keys[element] > key);
    }
    atomicAdd(&counters[ABOVE], above);
  }
  workgroupBarrier();
  let quota = keep - min(atomicLoad(&counters[ABOVE]), keep);
  var last = 0u;
  for (var round = 0u; round < ELEMENT_ROUNDS; round++) {
    let steps = steps_of(last, 2u * (ELEMENT_ROUNDS - 1u - round));
    var own = vec3<u32>(0u);
    if is_exact {
      for (var element = lane; element < TILE; element += WORKGROUP) {
        own += select(vec3<u32>(0u), ones(vec3<u32>(element) < steps), keys[element] == key);
      }
    }
    last = narrowed(last, steps, counted(own, FIRST_ELEMENT + 3u * round) < vec3<u32>(quota));
  }

  for (var group = lane; group < GROUPS; group += WORKGROUP) {
    if tops[group] >= bound {
      for (var i = 0u; i < GROUP; i++) {
        let element = element_of(group, i);
        let own = keys[element];
        let is_kept = own > key || (own == key && element <= last);
        if select(own >= bound, is_kept, is_exact) {
          let place = atomicAdd(&counters[PLACES], 1u);
          listed_keys[place] = own;
          listed[place] = element;
        }
      }
    }
  }
  workgroupBarrier();
  let count = atomicLoad(&counters[PLACES]);
  for (var i = lane; i < count; i += WORKGROUP) {
    let own = listed_keys[i];
    let element = listed[i];
    var rank = 0u;
    for (var j = 0u; j < count; j++) {
      let other = listed_keys[j];
      rank += select(0u, 1u, other > own || (other == own && listed[j] < element));
    }
    if rank < keep {
      put(rank, own, element);
    }
  }
  for (var i = count + lane; i < keep; i += WORKGROUP) {
    put(i, 0u, 0u);
  }
}
