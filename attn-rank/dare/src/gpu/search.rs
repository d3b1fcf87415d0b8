//! The search: tiles of behaviours, then rounds over what they kept.

use attn_wgpu::{Call as Dispatch, DType, KernelSource, Result, Tensor};

use super::kernels::{KEPT, MERGE, Run, SEARCH, TILE, bindings, flagged, search_constants, words};
use super::{Call, Dare, MASKED};

/// What a search kept.
pub(super) struct Found {
    /// i32 `[rows, K]`, -1 in unused places.
    pub(super) numbers: Tensor,
    /// Scores, f32 `[rows, K]`; keys of the search by category.
    pub(super) keys: Tensor,
    /// Scores of all behaviours, f32 `[rows, N]`, where they were asked for.
    pub(super) scores: Option<Tensor>,
}

/// Ids of what was kept.
pub(super) struct Kept {
    /// u32 `[rows, K, 4]`.
    pub(super) ids: Tensor,
    /// f32 `[rows, K]`.
    pub(super) scores: Tensor,
}

/// One kernel over tiles.
pub(super) struct Tiles<'a> {
    pub(super) source: &'a KernelSource,
    pub(super) flags: &'a [(&'static str, bool)],
    /// In front of the keys and numbers that the kernel writes, and behind them.
    pub(super) read: &'a [&'a Tensor],
    pub(super) behind: &'a [&'a Tensor],
    pub(super) rows: usize,
    pub(super) count: usize,
    /// Elements of a tile.
    pub(super) span: usize,
    /// Parameters behind rows, count, tiles and keep.
    pub(super) params: &'a [u32],
    /// Operations of one element.
    pub(super) work: f64,
}

impl Dare {
    /// The largest scores of the behaviours u32 `[B, N, 4]`; all of them, too, where heads need them.
    pub(super) fn search(&self, call: &Call, history: &Tensor, q: &Tensor) -> Result<Found> {
        let (rows, length) = (call.requests, call.length);
        let all = self.config.auxiliary || self.by_category();
        let scores = match all {
            true => Some(Tensor::uninit(&self.gpu, &[rows, length], DType::F32)?),
            false => None,
        };
        if rows * length == 0 {
            return Ok(Found { scores, ..self.nothing(rows)? });
        }
        let stage = &call.attention;
        let mut params = stage.params().to_vec();
        params.extend(self.config.scales().map(|scale| (scale as f32).to_bits()));
        let [item, category, time] = &stage.tables;
        let behind: Vec<&Tensor> = scores.iter().collect();
        let found = self.tiles(&Tiles {
            source: &SEARCH,
            flags: &[("SCORES", all), ("NEWEST", self.by_category())],
            read: &[history, item, category, time, q],
            behind: &behind,
            rows,
            count: length,
            span: TILE,
            params: &params,
            work: 8.0 * stage.width() as f64 + 40.0,
        })?;
        Ok(Found { scores, ..found })
    }

    /// No behaviour is kept.
    pub(super) fn nothing(&self, rows: usize) -> Result<Found> {
        let shape = [rows, self.config.keep];
        Ok(Found {
            numbers: Tensor::full(&self.gpu, &shape, -1i32)?,
            keys: Tensor::full(&self.gpu, &shape, MASKED)?,
            scores: None,
        })
    }

    /// Runs tiles, then merges what they kept until one list is left.
    pub(super) fn tiles(&self, first: &Tiles<'_>) -> Result<Found> {
        let keep = self.config.keep;
        let (mut keys, mut numbers, mut tiles) = self.round(first)?;
        while tiles > 1 {
            let span = TILE / keep * keep;
            (keys, numbers, tiles) = self.round(&Tiles {
                source: &MERGE,
                flags: &[("NEWEST", self.by_category())],
                read: &[&keys, &numbers],
                behind: &[],
                rows: first.rows,
                count: tiles * keep,
                span,
                params: &[span as u32],
                work: 40.0,
            })?;
        }
        let shape = [first.rows, keep];
        Ok(Found { keys: keys.reshape(&shape)?, numbers: numbers.reshape(&shape)?, scores: None })
    }

    /// Keys and numbers `[rows, tiles, K]`, and the number of tiles. Those of the last round are scores.
    fn round(&self, run: &Tiles<'_>) -> Result<(Tensor, Tensor, usize)> {
        let (gpu, keep) = (&self.gpu, self.config.keep);
        let tiles = run.count.div_ceil(run.span);
        let last = tiles == 1;
        let shape = [run.rows, tiles, keep];
        let keys = Tensor::uninit(gpu, &shape, if last { DType::F32 } else { DType::U32 })?;
        let numbers = Tensor::uninit(gpu, &shape, DType::I32)?;
        let mut tensors = run.read.to_vec();
        tensors.extend([&keys, &numbers]);
        tensors.extend(run.behind);
        let mut params = vec![
            words("requests", run.rows)?,
            words("behaviours", run.count)?,
            tiles as u32,
            keep as u32,
        ];
        params.extend(run.params);
        let constants = search_constants(gpu.capabilities()).flag("LAST", last);
        let kernel = gpu.kernel(run.source, flagged(constants, run.flags))?;
        let call = Dispatch {
            bindings: &bindings(&tensors),
            params: bytemuck::cast_slice(&params),
            groups: (run.rows * tiles) as u64,
            work: run.work * (run.rows * tiles * TILE.min(run.count)) as f64,
        };
        kernel.dispatch(gpu, &call)?;
        Ok((keys, numbers, tiles))
    }

    /// Ids and scores of what was kept.
    pub(super) fn kept(&self, call: &Call, history: &Tensor, found: &Found) -> Result<Kept> {
        let (rows, keep) = (call.requests, self.config.keep);
        if call.length == 0 {
            let ids = Tensor::full(&self.gpu, &[rows, keep, 4], u32::MAX)?;
            return Ok(Kept { ids, scores: found.keys.clone() });
        }
        let ids = Tensor::uninit(&self.gpu, &[rows, keep, 4], DType::U32)?;
        let looked_up = match (&found.scores, self.by_category()) {
            (Some(all), true) => Some((all, Tensor::uninit(&self.gpu, &[rows, keep], DType::F32)?)),
            _ => None,
        };
        let mut tensors = vec![&found.numbers, history, &ids];
        if let Some((all, scores)) = &looked_up {
            tensors.extend([*all, scores]);
        }
        let run = Run {
            source: &KEPT,
            flags: &[("LOOK_UP", looked_up.is_some())],
            tensors: &tensors,
            count: rows * keep,
            params: &[keep as u32, call.length as u32, 0],
            steps: 1,
        };
        run.record(&self.gpu)?;
        let scores = looked_up.map_or_else(|| found.keys.clone(), |(_, scores)| scores);
        Ok(Kept { ids, scores })
    }
}
