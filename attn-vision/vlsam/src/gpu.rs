//! The attention half on a device.
//!
//! ```text
//! of a layer, from the last to the first:
//!   Attention::forward_with     log-sum-exp and largest logit of each row (queries and keys)
//!   vlsam_row_max               largest probability of each row           (stored maps)
//!   vlsam_head_weights          W                                                  section 2.1
//!   Attention::transposed       u S of every head, probabilities computed again    2.2, row form
//!   scan::column_sums           the same of stored maps
//!   vlsam_step                  u A, summed over heads, and the flow so far        2.2, 2.3
//! of an object:
//!   scan::column_sums           mean of its rows                                   2.4
//!   vlsam_min_max               scaling
//! ```
//!
//! Of queries and keys no map is ever stored: memory grows with `heads * N` numbers for each row of the flow.

mod kernels;
mod layer;

use attn_wgpu::scan::{Columns, column_sums};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use crate::config::check_rows;
use crate::{
    AttentionMap, AttentionSource, Config, Regularisation, TokenLayout, causal_counts,
    column_factor,
};

use self::kernels::{MIN_MAX, STEP, Share, run, start};
use self::layer::Prepared;

#[cfg(feature = "bench")]
pub use self::kernels::kernels;

/// Rows of the flow that share the probabilities of a layer.
pub const ROWS_AT_ONCE: usize = 16;

/// Layers at most: no row grows above 2^L, which f32 holds.
pub const MAX_LAYERS: usize = 126;

/// Attention flow and maps on a device, sections 2.1 to 2.4.
#[derive(Debug, Clone)]
pub struct AttentionFlow {
    gpu: Gpu,
    config: Config,
}

/// Rows of the flow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Flow {
    /// Rows of `T[L-1]` in the order in which they were asked for, `[rows, N]`, f32, contiguous.
    pub rows: Tensor,
    /// `W`, `[L, H]`, f32; all 1 where they are off.
    pub head_weights: Tensor,
}

/// One object's map on the device.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// From 0 to 1, `[gh, gw]`, f32; all zeros where all patches are alike.
    pub map: Tensor,
    /// The same before scaling, `[gh, gw]`, f32.
    pub raw: Tensor,
    /// The object's rows of the flow, and the head weights.
    pub flow: Flow,
}

impl Output {
    /// The map on the host. Waits for the device.
    ///
    /// # Errors
    /// Those of the device; [`attn_core::Error::Data`] for a map that is not finite, as of inputs that are not.
    pub fn read(&self) -> Result<AttentionMap> {
        let &[rows, columns] = self.map.shape() else {
            let expected = "[gh, gw]";
            return Err(attn_core::Error::shape("map", expected, self.map.shape()).into());
        };
        let (values, raw) = (self.map.to_vec()?, self.raw.to_vec()?);
        Ok(AttentionMap::from_parts((rows, columns), values, raw)?)
    }
}

impl AttentionFlow {
    /// The method with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<AttentionFlow> {
        config.validate()?;
        Ok(AttentionFlow { gpu: gpu.clone(), config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The map of one object.
    ///
    /// # Errors
    /// As [`AttentionFlow::rows`], and [`attn_core::Error::Config`] for a layout that does not fit.
    pub fn forward(&self, source: &dyn AttentionSource, layout: &TokenLayout) -> Result<Output> {
        layout.validate(source.tokens())?;
        self.map(&self.rows(source, &layout.object_rows)?, layout)
    }

    /// The maps of several objects in one walk over the layers: [`ROWS_AT_ONCE`] rows share what has to be
    /// computed of a layer. Each map has the bits that it has alone.
    ///
    /// # Errors
    /// As [`AttentionFlow::forward`].
    pub fn forward_all(
        &self,
        source: &dyn AttentionSource,
        layouts: &[TokenLayout],
    ) -> Result<Vec<Output>> {
        layouts.iter().try_for_each(|layout| layout.validate(source.tokens()))?;
        let rows: Vec<usize> =
            layouts.iter().flat_map(|layout| layout.object_rows.iter().copied()).collect();
        let all = self.rows(source, &rows)?;
        let mut first = 0;
        let map = |layout: &TokenLayout| {
            let rows = all.rows.narrow(0, first, layout.object_rows.len())?;
            first += layout.object_rows.len();
            self.map(&Flow { rows, head_weights: all.head_weights.clone() }, layout)
        };
        layouts.iter().map(map).collect()
    }

    /// Rows of the flow: of the tokens `rows`, by the row form.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a row that the sequence lacks, no token, no layer, more than
    /// [`MAX_LAYERS`] or layers with different heads; [`attn_core::Error`] for attention that does not fit the sequence; those of the
    /// source and of the device.
    pub fn rows(&self, source: &dyn AttentionSource, rows: &[usize]) -> Result<Flow> {
        let (tokens, layers) = (source.tokens(), source.layers());
        check_rows(rows, tokens)?;
        if tokens == 0 {
            return Err(attn_core::Error::config("tokens", "at least one", tokens).into());
        }
        if !(1..=MAX_LAYERS).contains(&layers) {
            let expected = format!("1 to {MAX_LAYERS}");
            return Err(attn_core::Error::config("layers", expected, layers).into());
        }
        let factor = self.factor(source)?;
        let mut walks: Vec<Walk> = rows
            .chunks(ROWS_AT_ONCE)
            .map(|rows| Walk::new(&self.gpu, rows, tokens))
            .collect::<Result<_>>()?;
        let mut attention = None;
        let mut all_weights: Option<Tensor> = None;
        for number in (0..layers).rev() {
            let layer = Prepared::new(&self.gpu, source.layer(number)?, tokens, &mut attention)?;
            let heads = layer.heads();
            let weights = match &all_weights {
                Some(weights) if weights.shape()[1] != heads => {
                    let expected = format!("{} heads in every layer", weights.shape()[1]);
                    return Err(attn_core::Error::config("heads", expected, heads).into());
                }
                Some(weights) => weights.clone(),
                None => {
                    let weights = Tensor::full(&self.gpu, &[layers, heads], 1.0_f32)?;
                    all_weights.insert(weights).clone()
                }
            };
            let own = weights.narrow(0, number, 1)?;
            if self.config.head_weights {
                layer.head_weights(&own)?;
            }
            for walk in &mut walks {
                let y = layer.spread(&walk.u)?;
                self.step(walk, &y, &own, &factor, [number, layers])?;
            }
        }
        let head_weights = match all_weights {
            Some(weights) => weights,
            None => Tensor::zeros(&self.gpu, &[layers, 0], DType::F32)?,
        };
        let all = Tensor::uninit(&self.gpu, &[rows.len(), tokens], DType::F32)?;
        for (number, walk) in walks.iter().enumerate() {
            let own = walk.flow.permute(&[1, 0])?.narrow(0, 0, walk.rows)?;
            ops::copy(&own, &all.narrow(0, number * ROWS_AT_ONCE, walk.rows)?)?;
        }
        Ok(Flow { rows: all, head_weights })
    }

    /// The map of rows of the flow, all of which are averaged, at the image of `layout`.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for other rows than those of the layout, [`attn_core::Error::Config`] for a
    /// layout that does not fit; those of the device.
    pub fn map(&self, flow: &Flow, layout: &TokenLayout) -> Result<Output> {
        let count = layout.object_rows.len();
        let &[rows, tokens] = flow.rows.shape() else {
            let expected = format!("[{count}, N]");
            return Err(attn_core::Error::shape("rows", expected, flow.rows.shape()).into());
        };
        layout.validate(tokens)?;
        if rows != count {
            let expected = format!("[{count}, N]");
            return Err(attn_core::Error::shape("rows", expected, flow.rows.shape()).into());
        }
        let (patches, grid) = (layout.image.len(), [layout.grid.0, layout.grid.1]);
        let image = flow.rows.narrow(1, layout.image.start, patches)?.contiguous()?;
        let image = image.reshape(&[1, 1, rows, patches])?;
        let mean = column_sums(Columns::new(&image).with_factor(1.0 / rows as f32))?;
        let raw = mean.contiguous()?.reshape(&grid)?;
        let map = Tensor::uninit(&self.gpu, &grid, DType::F32)?;
        let params = [patches as u32, start(&raw), start(&map)];
        run(&self.gpu, &MIN_MAX, None, &[&raw, &map], &params, Share::Groups(1, patches))?;
        Ok(Output { map, raw, flow: flow.clone() })
    }

    /// `rho` of every column, f32 `[N]`.
    fn factor(&self, source: &dyn AttentionSource) -> Result<Tensor> {
        let tokens = source.tokens();
        let counts = source.column_counts().unwrap_or_else(|| causal_counts(tokens));
        if counts.len() != tokens {
            let expected = format!("[{tokens}]");
            return Err(attn_core::Error::shape("column_counts", expected, &[counts.len()]).into());
        }
        let factor: Vec<f32> = column_factor(&counts)?.iter().map(|rho| *rho as f32).collect();
        Tensor::from_slice(&self.gpu, &factor, &[tokens])
    }

    /// One layer on the way from the last, `layers - 1`, to the first, 0.
    fn step(
        &self,
        walk: &mut Walk,
        y: &layer::Spread,
        weights: &Tensor,
        factor: &Tensor,
        [layer, layers]: [usize; 2],
    ) -> Result<()> {
        let is_last = layer == 0;
        // The flow is r (w[L-1] + r (w[L-2] + ..)): what comes later is multiplied more often.
        let (power, last_power) = match self.config.regularisation {
            Regularisation::PerLayer => (layers - layer, 0),
            Regularisation::Once => (0, usize::from(is_last)),
            Regularisation::None => (0, 0),
        };
        let (count, width) = (walk.u.len(), walk.u.shape()[1]);
        let [y_start, y_head, y_token, y_row] = y.place;
        let params = [
            count as u32,
            width as u32,
            y.heads as u32,
            y_start,
            y_head,
            y_token,
            y_row,
            start(weights),
            power as u32,
            last_power as u32,
            u32::from(is_last),
        ];
        let tensors = [&y.values, weights, factor, &walk.u, &walk.flow];
        run(&self.gpu, &STEP, None, &tensors, &params, Share::Items(count))
    }
}

/// Up to [`ROWS_AT_ONCE`] rows on their way through the layers.
struct Walk {
    rows: usize,
    /// What goes into the next layer, `[N, width]`: so many rows, filled up to whole groups of four.
    u: Tensor,
    /// The flow so far, `[N, width]`.
    flow: Tensor,
}

impl Walk {
    fn new(gpu: &Gpu, rows: &[usize], tokens: usize) -> Result<Walk> {
        let width = rows.len().next_multiple_of(4);
        let mut units = vec![0.0_f32; tokens * width];
        for (number, row) in rows.iter().enumerate() {
            if let Some(unit) = units.get_mut(row * width + number) {
                *unit = 1.0;
            }
        }
        Ok(Walk {
            rows: rows.len(),
            u: Tensor::from_slice(gpu, &units, &[tokens, width])?,
            flow: Tensor::zeros(gpu, &[tokens, width], DType::F32)?,
        })
    }
}
