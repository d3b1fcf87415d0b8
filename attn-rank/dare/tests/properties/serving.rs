//! Histories that stay on the device give what whole requests give.

use attn_dare::reference::{self, Tables, forward};
use attn_dare::{Dare, Error, Search};
use attn_wgpu::testing::gpu;
use attn_wgpu::{Gpu, Tensor};
use ndarray::{Array1, Array2};

use crate::support::{config, near, tables};

fn ids(count: usize, step: usize, rows: usize) -> Vec<u32> {
    (0..count).map(|i| (1 + i * step % (rows - 1)) as u32).collect()
}

/// One request for each candidate, with the newest behaviours.
fn requests(
    candidates: &[u32],
    items: &[u32],
    categories: &[u32],
    slots: usize,
) -> reference::Batch {
    let searched = items.len().min(slots - 1);
    let fill = |ids: &[u32]| {
        let newest = &ids[ids.len() - searched..];
        Array2::from_shape_fn((candidates.len(), searched), |(_, j)| newest[j])
    };
    let item = Array1::from(candidates.to_vec());
    let category = item.mapv(|item| 1 + item % 5);
    reference::Batch::new(item, category, fill(items), fill(categories))
}

fn on(gpu: &Gpu, ids: impl IntoIterator<Item = u32>) -> Tensor {
    let ids: Vec<u32> = ids.into_iter().collect();
    Tensor::from_slice(gpu, &ids, &[ids.len()]).unwrap()
}

#[test]
fn smoke_serving_is_the_plain_form() {
    let Some(gpu) = gpu() else { return };
    for (widths, half, bound) in
        [([4, 4, 4], false, 3e-6), ([3, 6, 2], false, 3e-6), ([4, 4, 4], true, 3e-3)]
    {
        let config = config(widths, [4, 3, 4], 8).without_auxiliary();
        let rows = [60, 6, 701];
        let own: Tables = tables(1, rows, &config);
        let tables = attn_dare::Tables::upload(&gpu, &own).unwrap();
        let dare = Dare::new(&gpu, config.clone()).unwrap();
        let mut history = dare.history(&tables, half).unwrap();
        assert!(history.is_empty() && history.is_half() == half);
        let candidates = [5u32, 17, 40];
        let (item, category) =
            (on(&gpu, candidates), on(&gpu, candidates.map(|item| 1 + item % 5)));
        let (items, categories) = (ids(1000, 7, 60), ids(1000, 11, 6));
        // Nothing, one, some, more than fits at first, and more than there are slots for.
        let mut length = 0;
        for more in [0, 1, 30, 400, 569] {
            let part = length..length + more;
            dare.append(&mut history, &items[part.clone()], &categories[part]).unwrap();
            length += more;
            assert_eq!((history.len(), history.searched()), (length, length.min(700)));
            let recalled = dare.recall(&history, &item, &category).unwrap();
            let data = requests(&candidates, &items[..length], &categories[..length], 701);
            let want = forward(&own, &data, &config).unwrap();
            near(&format!("{length}"), &recalled.features, want.features.view(), bound);
            if !half {
                let index = recalled.index.to_array::<i32>().unwrap().mapv(i64::from);
                assert_eq!(index, want.index.into_dyn(), "{length}");
            }
            assert_eq!(recalled.scores.shape(), recalled.weights.shape());
        }
        assert!(history.bytes() >= 1000 * (if half { 2 } else { 4 }) * (widths[0] + widths[1]));
        // A candidate alone among the others: the same bits.
        let all = dare.recall(&history, &item, &category).unwrap();
        let one = dare
            .recall(&history, &item.narrow(0, 1, 1).unwrap(), &category.narrow(0, 1, 1).unwrap())
            .unwrap();
        let middle = all.features.narrow(0, 1, 1).unwrap();
        assert_eq!(middle.to_vec::<f32>().unwrap(), one.features.to_vec::<f32>().unwrap());
        let none = dare.recall(&history, &on(&gpu, []), &on(&gpu, [])).unwrap();
        assert!(none.features.is_empty());

        let path = std::env::temp_dir()
            .join(format!("attn-dare-{}-{half}.safetensors", std::process::id()));
        history.save(&path).unwrap();
        let read = dare.load_history(&tables, &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((read.len(), read.is_half()), (length, half));
        let again = dare.recall(&read, &item, &category).unwrap();
        assert_eq!(again.features.to_vec::<f32>().unwrap(), all.features.to_vec::<f32>().unwrap());
    }
}

/// What was kept before is not touched by what comes later.
#[test]
fn appended_rows_are_not_written_again() {
    let Some(gpu) = gpu() else { return };
    let config = config([4, 4, 4], [4, 4, 4], 4).without_auxiliary();
    let tables = attn_dare::Tables::upload(&gpu, &tables(2, [30, 6, 100], &config)).unwrap();
    let dare = Dare::new(&gpu, config).unwrap();
    let mut history = dare.history(&tables, false).unwrap();
    dare.append(&mut history, &[1, 2, 3], &[1, 1, 2]).unwrap();
    let before = history.clone();
    let item = on(&gpu, [4]);
    let first = dare.recall(&before, &item, &item).unwrap().features.to_vec::<f32>().unwrap();
    dare.append(&mut history, &ids(400, 3, 30), &ids(400, 3, 6)).unwrap();
    let again = dare.recall(&before, &item, &item).unwrap().features.to_vec::<f32>().unwrap();
    assert_eq!(first, again);
}

#[test]
fn histories_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let config = config([4, 4, 4], [4, 4, 4], 4).without_auxiliary();
    let own = attn_dare::Tables::upload(&gpu, &tables(2, [30, 6, 100], &config)).unwrap();
    let dare = Dare::new(&gpu, config.clone()).unwrap();
    let mut history = dare.history(&own, false).unwrap();
    let hard = Dare::new(&gpu, config.with_search(Search::Category)).unwrap();
    let text = |result: Result<(), Error>| result.unwrap_err().to_string();
    let two = on(&gpu, [1, 2]);
    for (message, part) in [
        (text(dare.append(&mut history, &[1, 2], &[1])), "`category` has shape [1]"),
        (text(dare.append(&mut history, &[30], &[1])), "`item` holds 30"),
        (text(dare.append(&mut history, &[1], &[6])), "`category` holds 6"),
        (text(dare.append(&mut history, &[0], &[1])), "`item` holds 0"),
        (text(hard.history(&own, false).map(drop)), "`search` is by category"),
        (text(dare.recall(&history, &two, &on(&gpu, [1])).map(drop)), "`category` has shape [1]"),
        (text(dare.load_history(&own, "there/is/no/such.safetensors").map(drop)), "no/such"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(history.is_empty());
}
