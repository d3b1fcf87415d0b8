//! Acceptance 3: the flow of a real model as attribution over a text. Runs on request, where
//! the model has been fetched.
#![cfg(feature = "model")]

use std::ops::Range;
use std::path::Path;

use attn_core::testing::TensorFile;
use attn_model::{Model, Options, Pass, cache_dir};
use attn_vlsam::{AttentionFlow, Config, Recorder, Regularisation};
use attn_wgpu::testing::gpu;

/// Answers begin by repeating the question, then tell the needle: the row is that of the token in front of it.
const PROMPTS: [usize; 7] = [0, 4, 7, 1, 3, 6, 8];

struct Prompt {
    /// The prompt, and the answer up to the needle.
    ids: Vec<u32>,
    /// Tokens of the prompt.
    len: usize,
    haystack: Range<usize>,
    /// The sentence that holds the needle.
    sentence: Range<usize>,
}

/// The prompts, in the chat form of the model: three tokens, the haystack, two line ends, the question.
fn prompt(file: &TensorFile, number: usize) -> Prompt {
    let ids = file.i32("prompt_ids").unwrap();
    let generated = file.i32("generated_ids").unwrap();
    let ranges = file.i32("needle_range").unwrap();
    let len = file.i32("prompt_len").unwrap()[[number]] as usize;
    let prompt: Vec<u32> = (0..len).map(|i| ids[[number, i]] as u32).collect();
    let needle = ranges[[number, 0]] as usize..ranges[[number, 1]] as usize;
    let answer: Vec<u32> = generated.rows_of(number);
    let words = &prompt[needle.clone()];
    let before = answer.windows(words.len()).position(|part| part == words).unwrap();
    // A full stop is the token behind the needle.
    let stop = prompt[needle.end];
    let start = (0..needle.start).rev().find(|&i| prompt[i] == stop).map_or(3, |i| i + 1);
    let line_end = prompt[2];
    let end = (needle.end..len).find(|&i| prompt[i] == line_end).unwrap();
    Prompt {
        ids: prompt.iter().chain(&answer[..before]).copied().collect(),
        len,
        haystack: 3..end,
        sentence: start..needle.end + 1,
    }
}

trait Rows {
    fn rows_of(&self, row: usize) -> Vec<u32>;
}

impl Rows for attn_vlsam::ndarray::ArrayD<i32> {
    fn rows_of(&self, row: usize) -> Vec<u32> {
        self.index_axis(attn_vlsam::ndarray::Axis(0), row).iter().map(|id| *id as u32).collect()
    }
}

/// A prompt takes a quarter of a minute of a processor, too much for every run: `ATTN_NEEDLES` says how many of the
/// prompts run, of 7; none by default.
#[test]
fn the_flow_looks_at_the_needle() {
    let count =
        std::env::var("ATTN_NEEDLES").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    let wanted: Vec<usize> = PROMPTS.into_iter().take(count).collect();
    if wanted.is_empty() {
        println!("skipped: ATTN_NEEDLES is not set");
        return;
    }
    let Some(folder) = cache_dir() else { return };
    let path = folder.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: {} has not been fetched", path.display());
        return;
    }
    let Some(gpu) = gpu() else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text/needles.safetensors");
    let file = TensorFile::read(file).unwrap();
    let model = Model::load(&gpu, &path, Options::exact()).unwrap();
    let placements = [Regularisation::Once, Regularisation::None];
    let mut sums = [0.0; 2];
    for number in &wanted {
        let prompt = prompt(&file, *number);
        let mut recorder = Recorder::new(&model);
        let mut session = model.session(prompt.ids.len()).unwrap();
        session.forward_with(&prompt.ids, Pass::new().with_observer(&mut recorder)).unwrap();
        let source = recorder.source().unwrap();
        let rows = [prompt.ids.len() - 1, prompt.len - 3, prompt.len - 1];
        for (sum, placement) in sums.iter_mut().zip(placements) {
            let config = Config::new().with_regularisation(placement);
            let flow = AttentionFlow::new(&gpu, config).unwrap().rows(&source, &rows).unwrap();
            let flow = flow.rows.to_array::<f32>().unwrap();
            let mass = |row: usize, tokens: &Range<usize>| -> f64 {
                tokens.clone().map(|j| f64::from(flow[[row, j]])).sum()
            };
            let share = |row: usize| mass(row, &prompt.sentence) / mass(row, &prompt.haystack);
            let lift = share(0) / share(1);
            let start = share(2) / share(1);
            println!(
                "prompt {number}, {placement:?}: share {:.3}, lift {lift:.2}; of the last token of the prompt {start:.2}",
                share(0)
            );
            *sum += lift;
        }
    }
    let [once, none] = sums.map(|sum| sum / wanted.len() as f64);
    println!("mean lift {once:.2} regularised once, {none:.2} without");
    assert!(once >= 2.0, "{once}");
}
