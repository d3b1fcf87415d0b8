// The groups of a plan: their queries, what a query sees, and how many keys a group lists. Needs
// `params` (plan_fields, queries, keys) and `plan`, the words of one part.

const EXPLICIT = 0u;
const SINKS = 1u;
const WINDOW = 2u;
#ifdef NEAR
const PHASES = 3u;
#else
const PHASES = 1u;
#endif

struct Members {
  plane: u32,
  // The first query, or its place in q_idx.
  first: u32,
  count: u32,
}

fn members_of(group: u32) -> Members {
#ifdef TILED
  let first = group % params.plane_groups * params.bq;
  return Members(group / params.plane_groups, first, min(params.bq, params.queries - first));
#else
  // The last plane whose groups begin here or before.
  var plane = 0u;
  var behind = params.planes;
  while behind - plane > 1u {
    let middle = (plane + behind) / 2u;
    if plan[params.at_planes + middle] <= group {
      plane = middle;
    } else {
      behind = middle;
    }
  }
  let first = plan[params.at_rows + group];
#ifdef LISTS
  return Members(plane, first, plan[params.at_rows + group + 1u] - first);
#else
  let start = min(first, params.queries);
  return Members(plane, start, min(plan[params.at_members + group], params.queries - start));
#endif
#endif
}

fn query_of(members: Members, index: u32) -> u32 {
#ifdef LISTS
  return plan[params.at_members + members.first + index];
#else
  return members.first + index;
#endif
}

fn position_of(query: u32) -> i32 {
  return i32(query) + params.q_off;
}

// Bounds of what a position sees in a phase; both rise with it, and nothing is between them where the
// end is not behind the start.
fn bounds_at(phase: u32, position: i32) -> vec2<i32> {
  let far = position - params.max_dist;
  let recent = position - params.window + 1;
  var start = max(far, params.sink);
  var end = i32(params.entry_keys);
  if params.causal != 0u {
    end = min(end, recent);
  }
#ifdef NEAR
  if phase == SINKS {
    start = far;
    end = min(params.sink, recent);
  }
  if phase == WINDOW {
    start = max(far, recent);
    // Without a window, what the first and the last of several rows bound is empty too.
    end = select(0, position + 1, params.window > 0);
  }
#endif
  return vec2<i32>(start, end);
}

// The keys that there are of an interval.
fn clip(start: i32, end: i32) -> vec2<u32> {
  let keys = i32(params.keys);
  let low = clamp(start, 0, keys);
  return vec2<u32>(u32(low), u32(clamp(end, low, keys)));
}

// Keys that a position sees in a phase: start and end of an interval.
fn seen_at(phase: u32, position: i32) -> vec2<u32> {
  let bounds = bounds_at(phase, position);
  return clip(bounds.x, bounds.y);
}

// Keys that the rows from `first` to `last` see, if they rise: the smallest interval that holds all.
fn hull_of(phase: u32, members: Members, first: u32, last: u32) -> vec2<u32> {
  let low = bounds_at(phase, position_of(query_of(members, first)));
  let high = bounds_at(phase, position_of(query_of(members, last)));
  return clip(low.x, high.y);
}

// Number of keys that the entries of a group hold; bits of which no query can see a key come last and
// do not count.
fn listed_keys(group: u32, members: Members) -> u32 {
  var count = 0u;
#ifdef BLOCKS
  count = (plan[params.at_row_ptr + group + 1u] - plan[params.at_row_ptr + group]) * params.bk;
#endif
#ifdef TOKENS
  count = plan[params.at_row_ptr + group + 1u] - plan[params.at_row_ptr + group];
#endif
#ifdef SPANS
  let behind = plan[params.at_row_ptr + group + 1u];
  for (var entry = plan[params.at_row_ptr + group]; entry < behind; entry++) {
    count += plan[params.at_data + 2u * entry + 1u];
  }
#endif
#ifdef BLOCK_BITS
  let end = hull_of(EXPLICIT, members, 0u, members.count - 1u).y;
  if end > params.origin {
    let blocks = min((end - params.origin - 1u) / params.bk + 1u, params.group_words * 32u);
    let first = params.at_data + group * params.group_words;
    for (var word = 0u; word < blocks / 32u; word++) {
      count += countOneBits(plan[first + word]);
    }
    if blocks % 32u != 0u {
      count += countOneBits(plan[first + blocks / 32u] & ((1u << (blocks % 32u)) - 1u));
    }
  }
  count *= params.bk;
#endif
  return count;
}
