mod common;
use attn_core::plan::*;
use common::plans::{config, gradients, judge_gradients};
use common::{cotangents, gpu, normal, shape};
#[test]
fn debug() {
    let Some(gpu) = gpu() else { return };
    for (dim, h, combine) in [(16, 1, Combine::Mean), (16, 3, Combine::Mean), (16, 3, Combine::Lse), (201, 3, Combine::Mean)] {
        let inputs = normal(shape([1, h, h, 4, 4, dim, dim]), 1);
        let rows = Rows::Lists { plane_ptr: (0..=h as u32).collect(), q_ptr: (0..=h as u32).map(|x| 2 * x).collect(), q_idx: [1, 3].repeat(h) };
        let part = Part::new(rows, Entries::Ranges { row_ptr: (0..=h as u32).map(|_|0).collect(), ranges: vec![] });
        let plan = SparsePlan::new(PlanShape::from(&inputs.shape), Share::PerHead, true, vec![part.clone(), part])
            .with_near(Near { sink: 0, window: 6, grow: true }).with_max_dist(0).with_combine(combine.clone()).canonicalise().unwrap();
        let (d_out, _) = cotangents(&inputs.shape, 1);
        let got = gradients(&gpu, &inputs, &plan, &config(&plan), (&d_out, None));
        println!("{dim} {h} {combine:?} {:?}", judge_gradients(&inputs, &plan, &config(&plan), (&d_out, None), &got));
        println!("{:?}", got.dv.chunks(dim).map(|r| r[0]).collect::<Vec<_>>());
    }
}
