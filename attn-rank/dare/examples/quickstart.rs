//! One training step of both stages, and a search of a kept history for several candidates.

use attn_dare::ndarray::{Array1, Array2};
use attn_dare::reference;
use attn_dare::{
    Batch, Config, Cotangents, Dare, Error, Gpu, Head, HeadCotangents, HeadInputs, Inputs,
    Parameters, Tables, Tensor, Widths,
};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // 1000 items of 20 categories, histories of up to 300 behaviours; the search is a quarter as wide.
    let config = Config::new().with_widths(Widths::each(4), Widths::each(16)).without_auxiliary();
    let wave = |at: usize| 0.1 * (at as f64 * 0.7391).sin();
    let table = |seed, rows, width| {
        Array2::from_shape_fn((rows, width), |(r, c)| wave(seed + r * 31 + c * 17))
    };
    let stage = |seed, width| reference::Embeddings {
        item: table(seed, 1001, width),
        category: table(seed + 1, 21, width),
        time: table(seed + 2, 301, width),
    };
    let tables = reference::Tables::new(stage(1, 4), stage(2, 16));
    let tables = Tables::upload(&gpu, &tables)?;
    println!("{} bytes of tables", tables.bytes());

    // A candidate and a history for each of two users; item 0 is padding, in front.
    let items =
        Array2::from_shape_fn(
            (2, 300),
            |(b, j)| {
                if j < 50 * b { 0 } else { 1 + (j * 7 % 1000) as u32 }
            },
        );
    let categories = items.mapv(|item| if item == 0 { 0 } else { 1 + item % 20 });
    let candidates = Array1::from(vec![8, 15]);
    let batch = reference::Batch::new(candidates, Array1::from(vec![9, 16]), items, categories);
    let batch = Batch::upload(&gpu, &batch, &tables)?;
    let dare = Dare::new(&gpu, config.clone())?;
    let (output, saved) = dare.forward_saved(Inputs::new(&tables, &batch))?;
    println!("kept {:?}", &output.index.to_vec::<i32>()?[..5]);

    // The head, its loss, and gradients of everything.
    let linear = |seed, outputs, inputs| reference::Linear {
        weight: table(seed, outputs, inputs) * 0.1,
        bias: Array1::zeros(outputs),
    };
    let parameters = reference::Head {
        gain: Array1::ones(config.features()),
        bias: Array1::zeros(config.features()),
        layers: vec![linear(3, 200, config.features()), linear(4, 80, 200), linear(5, 2, 80)],
        slopes: vec![0.1; 2],
    };
    let parameters = Parameters::upload(&gpu, &parameters)?;
    let label = Tensor::from_slice(&gpu, &[0u32, 1], &[2])?; // a click, and none
    let head = Head::new(&gpu);
    let inputs = HeadInputs::new(&output.features, &parameters).with_label(&label);
    let (classes, head_saved) = head.forward_saved(inputs)?;
    if let Some(loss) = &classes.loss {
        println!("loss {:.4}", loss.to_vec::<f32>()?[0]);
    }
    let one = Tensor::from_slice(&gpu, &[1f32], &[1])?;
    let by_head = head.backward(&head_saved, HeadCotangents::of_loss(&one))?;
    let grads = dare.backward(&saved, Cotangents::new(&by_head.x))?;
    println!("gradient of the items that search {:?}", grads.attention.item.shape());

    // Serving: the history stays, several candidates search it.
    let mut history = dare.history(&tables, false)?;
    let seen: Vec<u32> = (1..=200).collect();
    let kinds: Vec<u32> = seen.iter().map(|item| 1 + item % 20).collect();
    dare.append(&mut history, &seen, &kinds)?;
    let item = Tensor::from_slice(&gpu, &[8u32, 15, 900], &[3])?;
    let category = Tensor::from_slice(&gpu, &[9u32, 16, 1], &[3])?;
    let recalled = dare.recall(&history, &item, &category)?;
    println!("features of three candidates {:?}", recalled.features.shape());
    Ok(())
}
