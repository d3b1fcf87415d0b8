// In: an entry. Out: its row, the last one that begins at or before it in row_ptr [rows + 1]; `rows`
// behind the last entry.
fn row_of(entry: u32) -> u32 {
  let start = params.row_ptr_start;
  if entry >= row_ptr[start + params.rows] {
    return params.rows;
  }
  var low = 0u;
  var high = params.rows;
  while high - low > 1u {
    let middle = low + (high - low) / 2u;
    if row_ptr[start + middle] <= entry {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}
