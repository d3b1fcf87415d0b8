// Which item of work a workgroup has. Needs plan_fields and `item_word`: words of the listing, which
// are offsets [listed + 1], then numbers of keys [listed].

struct Work {
  // The group, and its place in the listing.
  group: u32,
  at: u32,
  // The key head that goes through the group.
  copy: u32,
  // Number of the item in its group, and in all of the round.
  index: u32,
  slot: u32,
}

// Items of this dispatch for one key head.
fn items_here() -> u32 {
  return item_word(params.base + params.group_count) - item_word(params.base);
}

// Numbers of keys that the group at this place lists.
fn listed_of(at: u32) -> u32 {
  return item_word(params.listed + 1u + at);
}

fn work_of(item: u32) -> Work {
  let own_items = items_here();
  let number = item_word(params.base) + item % own_items;
  let copy = item / own_items;
  // The last group whose items begin here or before.
  var at = params.base;
  var behind = params.base + params.group_count;
  while behind - at > 1u {
    let middle = (at + behind) / 2u;
    if item_word(middle) <= number {
      at = middle;
    } else {
      behind = middle;
    }
  }
  let group = params.first_group + at - params.base;
  return Work(group, at, copy, number - item_word(at), copy * item_word(params.listed) + number);
}
