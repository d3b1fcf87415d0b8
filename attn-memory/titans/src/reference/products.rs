//! Products of gates: how much of each token is left at each later one, in a chunk of m tokens.
//!
//! With indices 0 to m, 0 being the state before the chunk:
//!
//! ```text
//! Al[t,s] = prod_{s<j<=t} (1 - alpha_j)     what of W is left        Et[t,s] = prod_{s<j<=t} eta_j     of S
//! Ct      = Al[1..m,1..m] Et[1..m,0..m]     what of a step, or of S before, is in W   [m, m + 1]
//! ```
//!
//! Nothing is divided: gates may be 0. No row reads gates of later tokens, also not to multiply them by 0.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};

pub(super) struct Products {
    /// Al and Et, `[m + 1, m + 1]`, 0 above the diagonal.
    al: Array2<f64>,
    et: Array2<f64>,
    ct: Array2<f64>,
}

/// Cotangents of [`Products`]; rows of `c` are the tokens that read.
pub(super) struct Cotangents {
    pub beta: Array1<f64>,
    pub kappa: Array1<f64>,
    pub c: Array2<f64>,
    pub omega: Array1<f64>,
    pub momentum: f64,
}

impl Cotangents {
    pub fn zeros(m: usize) -> Self {
        let row = Array1::zeros(m);
        Cotangents {
            beta: row.clone(),
            kappa: row.clone(),
            c: Array2::zeros((m, m)),
            omega: row,
            momentum: 0.0,
        }
    }
}

impl Products {
    pub fn new(eta: ArrayView1<'_, f64>, alpha: ArrayView1<'_, f64>) -> Self {
        let al = products(alpha.mapv(|alpha| 1.0 - alpha).view());
        let et = products(eta);
        // The product row by row: Al[t,j] is Al[t-1,j] times what is left at t.
        let mut ct = et.slice(s![1.., ..]).to_owned();
        for t in 1..ct.nrows() {
            let before = ct.row(t - 1).mapv(|share| share * (1.0 - alpha[t]));
            ct.row_mut(t).scaled_add(1.0, &before);
        }
        Products { al, et, ct }
    }

    /// Share of W before the chunk in `W_t`, `Al[1..m,0]`.
    pub fn beta(&self) -> ArrayView1<'_, f64> {
        self.al.slice(s![1.., 0])
    }

    /// Share of S before the chunk in `W_t`.
    pub fn kappa(&self) -> ArrayView1<'_, f64> {
        self.ct.column(0)
    }

    /// Share of the step of token s in `W_t`, `C[t,s]`.
    pub fn c(&self) -> ArrayView2<'_, f64> {
        self.ct.slice(s![.., 1..])
    }

    /// Share of the step of token s in S behind the chunk, `Et[m,1..m]`.
    pub fn omega(&self) -> ArrayView1<'_, f64> {
        self.et.slice(s![-1, 1..])
    }

    /// Share of S before the chunk in that behind it, `Et[m,0]`.
    pub fn momentum(&self) -> f64 {
        self.et[[self.et.nrows() - 1, 0]]
    }

    /// Derivatives by eta and alpha.
    pub fn backward(&self, d: &Cotangents) -> (Array1<f64>, Array1<f64>) {
        let m = self.ct.nrows();
        let mut d_ct = Array2::zeros((m, m + 1));
        d_ct.column_mut(0).assign(&d.kappa);
        d_ct.slice_mut(s![.., 1..]).assign(&d.c);
        let mut d_al = Array2::zeros((m + 1, m + 1));
        d_al.slice_mut(s![1.., 1..]).assign(&d_ct.dot(&self.et.slice(s![1.., ..]).t()));
        d_al.slice_mut(s![1.., 0]).assign(&d.beta);
        let mut d_et = Array2::zeros((m + 1, m + 1));
        d_et.slice_mut(s![1.., ..]).assign(&self.al.slice(s![1.., 1..]).t().dot(&d_ct));
        let mut last = d_et.row_mut(m);
        last[0] += d.momentum;
        last.slice_mut(s![1..]).scaled_add(1.0, &d.omega);
        (products_backward(&self.et, &d_et), -products_backward(&self.al, &d_al))
    }
}

/// `D[t,s] = prod_{s<j<=t} a_j`, `[m + 1, m + 1]`.
fn products(a: ArrayView1<'_, f64>) -> Array2<f64> {
    let mut d = Array2::eye(a.len() + 1);
    for t in 1..=a.len() {
        for s in 0..t {
            d[[t, s]] = a[t - 1] * d[[t - 1, s]];
        }
    }
    d
}

/// `da_j = sum_{t >= j > s} dD[t,s] D[t,j] D[j-1,s]`.
fn products_backward(d: &Array2<f64>, d_d: &Array2<f64>) -> Array1<f64> {
    let m = d.nrows() - 1;
    let of = |j: usize| -> f64 {
        let pairs = (j..=m).flat_map(|t| (0..j).map(move |s| (t, s)));
        pairs.map(|(t, s)| d_d[[t, s]] * d[[t, j]] * d[[j - 1, s]]).sum()
    };
    (1..=m).map(of).collect()
}
