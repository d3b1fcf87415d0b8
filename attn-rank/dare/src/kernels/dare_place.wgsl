// Where an element of an embedding lies among the chunks of three tables, and back. In: an element's number
// and the tables' widths in `params`. Out: its place, in words.
fn place_of(column: u32) -> u32 {
  if column < params.item_width {
    return column;
  }
  let second = column - params.item_width;
  let item = 4u * ((params.item_width + 3u) / 4u);
  if second < params.category_width {
    return item + second;
  }
  return item + 4u * ((params.category_width + 3u) / 4u) + second - params.category_width;
}
