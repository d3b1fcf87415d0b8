//! Derivatives on a device.

use attn_core::Error;
use attn_wgpu::embedding::{RowLists, ScatterRows};
use attn_wgpu::scan::{RowDot, row_dot};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{DOTS, FEATURES_BACK, Run, SLOPES};
use super::tables::{Embeddings, Stage, Tables, check_device};
use super::{Dare, Path};

/// What [`Dare::backward`] needs of a call.
#[derive(Debug, Clone)]
pub struct Saved {
    pub(super) tables: Tables,
    /// u32 `[B, 4]`.
    pub(super) candidates: Tensor,
    /// f32 `[B, 4 chunks]`.
    pub(super) q: Tensor,
    pub(super) v: Tensor,
    pub(super) main: Path,
    pub(super) auxiliary: Option<Path>,
    pub(super) requests: usize,
}

impl Saved {
    /// The same with tables at another place: a caller's allocator may have moved them. Their elements must
    /// be those of the forward pass. Ids are not needed again.
    pub fn with_tables(self, tables: &Tables) -> Saved {
        Saved { tables: tables.clone(), ..self }
    }

    /// Bytes on the device beside the tables.
    pub fn bytes(&self) -> usize {
        let path = |path: &Path| path.ids.len() + path.weights.len() + path.h.len();
        let own = self.candidates.len() + self.q.len() + self.v.len() + path(&self.main);
        4 * (own + self.auxiliary.as_ref().map_or(0, path))
    }
}

/// Derivatives of a loss by what [`Dare::forward`] returned; at least one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cotangents<'a> {
    /// By the features, f32 `[B, features]`.
    pub features: Option<&'a Tensor>,
    /// By the features of the auxiliary head, f32 `[B, features]`.
    pub auxiliary: Option<&'a Tensor>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss of the main head alone.
    pub fn new(features: &'a Tensor) -> Self {
        Cotangents { features: Some(features), auxiliary: None }
    }

    /// Of a loss of the auxiliary head as well.
    pub fn with_auxiliary(self, auxiliary: &'a Tensor) -> Self {
        Cotangents { auxiliary: Some(auxiliary), ..self }
    }
}

/// Derivatives of a loss by the tables, of their shapes. No term crosses from one stage to the other.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the tables that search.
    pub attention: Embeddings,
    /// By the tables that are pooled.
    pub representation: Embeddings,
}

impl Grads {
    /// By the one set of tables of a tied model: the sum of both.
    ///
    /// # Errors
    /// [`Error::Shape`] where widths differ, as then no model is tied.
    pub fn tied(&self) -> Result<Embeddings> {
        let (a, b) = (&self.attention, &self.representation);
        Ok(Embeddings {
            item: ops::add(&a.item, &b.item)?,
            category: ops::add(&a.category, &b.category)?,
            time: ops::add(&a.time, &b.time)?,
        })
    }
}

/// Where gradients of one stage are written, f32 of the tables' shapes; what has no target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmbeddingTargets<'a> {
    /// By the items' table.
    pub item: Option<&'a Tensor>,
    /// By the categories' table.
    pub category: Option<&'a Tensor>,
    /// By the slots' table.
    pub time: Option<&'a Tensor>,
}

impl<'a> EmbeddingTargets<'a> {
    /// All three.
    pub fn new(embeddings: &'a Embeddings) -> Self {
        let [item, category, time] = embeddings.all().map(Some);
        EmbeddingTargets { item, category, time }
    }

    fn all(&self) -> [Option<&'a Tensor>; 3] {
        [self.item, self.category, self.time]
    }

    fn is_none(&self) -> bool {
        self.all().iter().all(Option::is_none)
    }
}

/// Where [`Dare::backward_into`] writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// Of the tables that search.
    pub attention: EmbeddingTargets<'a>,
    /// Of the tables that are pooled.
    pub representation: EmbeddingTargets<'a>,
}

/// What is added into the rows of a stage's tables: a row for each request, times a weight for each id.
struct Addend<'a> {
    lists: &'a [RowLists; 3],
    rows: &'a Tensor,
    weights: Option<&'a Tensor>,
    /// Of items and categories, and of slots.
    factors: [f32; 2],
}

impl Dare {
    /// The vector-Jacobian product of [`Dare::forward`]; see [`crate::reference::backward`]. What was kept is
    /// constant. Gradients are dense: all rows of the tables, 0 for those that no request names.
    ///
    /// # Errors
    /// [`Error`] for cotangents of other shapes or types, or none at all; errors of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let new = |table: &Tensor| Tensor::uninit(&self.gpu, table.shape(), DType::F32);
        let stage = |own: &Embeddings| {
            Ok::<_, attn_wgpu::Error>(Embeddings::new(
                new(&own.item)?,
                new(&own.category)?,
                new(&own.time)?,
            ))
        };
        let attention = stage(&saved.tables.attention)?;
        let representation = stage(&saved.tables.representation)?;
        let targets = Targets {
            attention: EmbeddingTargets::new(&attention),
            representation: EmbeddingTargets::new(&representation),
        };
        self.backward_into(saved, cotangents, targets)?;
        Ok(Grads { attention, representation })
    }

    /// [`Dare::backward`] into callers' tensors, which must not overlap each other or anything else. Gradients
    /// of a tied model go to two targets; the caller adds them.
    ///
    /// # Errors
    /// As [`Dare::backward`], and [`Error`] for targets of other shapes or types.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let rows = saved.tables.check(&self.gpu, &self.config)?;
        self.check(saved, &cotangents, &targets)?;
        let attention = Stage::new(&saved.tables.attention, self.config.attention)?;
        let representation = Stage::new(&saved.tables.representation, self.config.representation)?;
        let pairs = [
            (cotangents.features, Some(&saved.main)),
            (cotangents.auxiliary, saved.auxiliary.as_ref()),
        ];
        let by_head = pairs.into_iter().filter_map(|(dx, path)| Some((dx?, path?)));
        let dv = Tensor::zeros(&self.gpu, saved.v.shape(), DType::F32)?;
        let scales = self.config.scales().map(|scale| scale as f32);
        let lists_of = |ids: &Tensor| self.lists(ids, rows);
        let mut first = true;
        let mut dq: Option<Tensor> = None;
        for (dx, path) in by_head {
            let dh = Tensor::zeros(&self.gpu, saved.v.shape(), DType::F32)?;
            self.features_back(saved, &representation, dx, path, &dh, &dv)?;
            let lists = lists_of(&path.ids)?;
            let add = Addend {
                lists: &lists,
                rows: &dh,
                weights: Some(&path.weights),
                factors: [1.0; 2],
            };
            self.add(&representation, &add, &targets.representation, !first)?;
            if !targets.attention.is_none() {
                let ds = self.slopes(&representation, path, &dh)?;
                let add =
                    Addend { lists: &lists, rows: &saved.q, weights: Some(&ds), factors: scales };
                self.add(&attention, &add, &targets.attention, !first)?;
                let own = self.sum(&attention, &path.ids, &ds)?;
                dq = Some(match dq {
                    None => own,
                    Some(before) => ops::add(&before, &own)?,
                });
            }
            first = false;
        }
        let lists = lists_of(&saved.candidates)?;
        let candidates = |rows, factors| Addend { lists: &lists, rows, weights: None, factors };
        self.add(&representation, &candidates(&dv, [1.0; 2]), &targets.representation, true)?;
        if let Some(dq) = dq {
            self.add(&attention, &candidates(&dq, scales), &targets.attention, true)?;
        }
        Ok(())
    }

    fn check(
        &self,
        saved: &Saved,
        cotangents: &Cotangents<'_>,
        targets: &Targets<'_>,
    ) -> Result<()> {
        let shape = [saved.requests, self.config.features()];
        let given = [
            ("cotangents.features", cotangents.features),
            ("cotangents.auxiliary", cotangents.auxiliary),
        ];
        for (arg, dx) in given {
            let Some(dx) = dx else { continue };
            check_form(arg, dx, &shape)?;
            check_device(arg, dx, &self.gpu)?;
        }
        if cotangents.auxiliary.is_some() && saved.auxiliary.is_none() {
            let expected = "none, as there was no auxiliary head";
            return Err(Error::config("cotangents.auxiliary", expected, "one").into());
        }
        if cotangents.features.is_none() && cotangents.auxiliary.is_none() {
            return Err(Error::config("cotangents", "at least one", "none").into());
        }
        let stages = [
            (&targets.attention, &saved.tables.attention),
            (&targets.representation, &saved.tables.representation),
        ];
        for (own, tables) in stages {
            for (target, table) in own.all().into_iter().zip(tables.all()) {
                let Some(target) = target else { continue };
                check_form("targets", target, table.shape())?;
                check_device("targets", target, &self.gpu)?;
            }
        }
        Ok(())
    }

    /// The rows of the three tables that ids u32 `[.., 4]` name.
    fn lists(&self, ids: &Tensor, rows: [usize; 3]) -> Result<[RowLists; 3]> {
        let flat = ids.reshape(&[ids.len() / 4, 4])?;
        let of = |table: usize| {
            let own = flat.narrow(1, table, 1)?.contiguous()?;
            RowLists::new(&own.reshape(&[own.len()])?, rows[table])
        };
        Ok([of(0)?, of(1)?, of(2)?])
    }

    /// dh, and dv added to what is there.
    fn features_back(
        &self,
        saved: &Saved,
        stage: &Stage,
        dx: &Tensor,
        path: &Path,
        dh: &Tensor,
        dv: &Tensor,
    ) -> Result<()> {
        let dx = dx.contiguous()?;
        let widths = stage.widths;
        let run = Run {
            source: &FEATURES_BACK,
            flags: &[("PRODUCT", self.config.target_aware), ("ACCUMULATE", true)],
            tensors: &[&dx, &saved.v, &path.h, dh, dv],
            count: saved.requests * widths.sum(),
            params: &[
                widths.item as u32,
                widths.category as u32,
                widths.time as u32,
                saved.v.shape()[1] as u32,
                dx.shape()[1] as u32,
                dx.binding().1 as u32,
            ],
            steps: 1,
        };
        run.record(&self.gpu)
    }

    /// Derivatives by the scores of a path, f32 `[B, M]`.
    fn slopes(&self, stage: &Stage, path: &Path, dh: &Tensor) -> Result<Tensor> {
        let shape = path.weights.shape();
        let &[rows, length] = shape else {
            return Err(Error::shape("weights", "[B, M]", shape).into());
        };
        let new = || Tensor::uninit(&self.gpu, shape, DType::F32);
        let (dw, ds) = (new()?, new()?);
        if path.weights.is_empty() {
            return Ok(ds);
        }
        let [item, category, time] = &stage.tables;
        let mut params = vec![length as u32];
        params.extend(stage.params());
        let run = Run {
            source: &DOTS,
            flags: &[],
            tensors: &[&path.weights, &path.ids, item, category, time, dh, &dw],
            count: rows * length,
            params: &params,
            steps: stage.width(),
        };
        run.record(&self.gpu)?;
        let four = |x: &Tensor| x.reshape(&[1, 1, rows, length]);
        let means = row_dot(RowDot::new(&four(&path.weights)?, &four(&dw)?))?;
        let run = Run {
            source: &SLOPES,
            flags: &[],
            tensors: &[&path.weights, &dw, &means, &ds],
            count: rows * length,
            params: &[length as u32],
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(ds)
    }

    /// Adds into the targets of a stage, or writes them.
    fn add(
        &self,
        stage: &Stage,
        addend: &Addend<'_>,
        targets: &EmbeddingTargets<'_>,
        accumulate: bool,
    ) -> Result<()> {
        for (table, target) in targets.all().into_iter().enumerate() {
            let Some(target) = target else { continue };
            let (start, width) = stage.columns(table);
            let rows = addend.rows.narrow(1, start, width)?;
            let call = ScatterRows::new(&rows);
            let call = addend.weights.map_or(call, |weights| call.with_weights(weights));
            let call = call.with_factor(addend.factors[table / 2]);
            let call = if accumulate { call.accumulating() } else { call };
            addend.lists[table].sum_into(call, target)?;
        }
        Ok(())
    }
}

pub(super) fn check_form(arg: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dtype() != DType::F32 {
        let (expected, got) = ("f32".into(), tensor.dtype().name().into());
        return Err(Error::Dtype { arg, expected, got }.into());
    }
    if tensor.shape() != shape {
        return Err(Error::shape(arg, format!("{shape:?}"), tensor.shape()).into());
    }
    Ok(())
}
