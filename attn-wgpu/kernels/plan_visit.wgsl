// The keys that a group visits, by number: those that it lists, then sinks and window of its near part.
// Needs plan_cursor.

struct Visit {
  key: u32,
  phase: u32,
#ifdef KEY_BIAS
  bias: f32,
#endif
}

// Keys that a group visits of which it lists `listed`.
fn visited_keys(members: Members, listed: u32) -> u32 {
  var count = listed;
#ifdef NEAR
  for (var phase = SINKS; phase <= WINDOW; phase++) {
    let hull = hull_of(phase, members, 0u, members.count - 1u);
    count += hull.y - hull.x;
  }
#endif
  return count;
}

// The key of a cursor in the group's entries.
fn entry_visit(cursor: ptr<function, Cursor>) -> Visit {
  var visit: Visit;
  visit.key = key_at(cursor);
  visit.phase = EXPLICIT;
#ifdef KEY_BIAS
  visit.bias = bitcast<f32>(plan[params.at_bias + (*cursor).entry]);
#endif
  return visit;
}

#ifdef NEAR
// The key with this number in the near part.
fn near_visit(members: Members, number: u32) -> Visit {
  var visit: Visit;
  let sinks = hull_of(SINKS, members, 0u, members.count - 1u);
  let window = hull_of(WINDOW, members, 0u, members.count - 1u);
  let count = sinks.y - sinks.x;
  if number < count {
    visit.key = sinks.x + number;
    visit.phase = SINKS;
  } else {
    visit.key = window.x + number - count;
    visit.phase = WINDOW;
  }
  return visit;
}
#endif

fn visit_at(group: u32, members: Members, listed: u32, number: u32) -> Visit {
#ifdef NEAR
  if number >= listed {
    return near_visit(members, number - listed);
  }
#endif
  var cursor = cursor_at(group, number);
  return entry_visit(&cursor);
}
