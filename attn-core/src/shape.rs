//! Extents of an attention call.

use crate::{Error, Lengths, Mask, Result};

/// Extents of one attention call, checked to fit together. Every extent may be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Independent sequences, B.
    pub batch: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub heads_kv: usize,
    /// Queries of a sequence, M.
    pub queries: usize,
    /// Keys of a sequence, N.
    pub keys: usize,
    /// Elements of a query and of a key.
    pub dim_qk: usize,
    /// Elements of a value and of an output.
    pub dim_v: usize,
}

impl AttentionShape {
    /// From the shapes of `q` `[batch, heads, queries, dim_qk]`, `k` `[batch, heads_kv, keys,
    /// dim_qk]` and `v` `[batch, heads_kv, keys, dim_v]`.
    ///
    /// # Errors
    /// [`Error::Shape`], naming the tensor, where a rank is not 4, `heads_kv` does not divide
    /// `heads`, or two extents that must agree do not.
    pub fn from_shapes(q: &[usize], k: &[usize], v: &[usize]) -> Result<Self> {
        let [batch, heads, queries, dim_qk] = rank_4("q", "[batch, heads, queries, dim_qk]", q)?;
        let [k_batch, heads_kv, keys, k_dim] = rank_4("k", "[batch, heads_kv, keys, dim_qk]", k)?;
        let [v_batch, v_heads, v_keys, dim_v] = rank_4("v", "[batch, heads_kv, keys, dim_v]", v)?;
        let agree = |arg, shape, what, got, want, other| {
            if got == want {
                return Ok(());
            }
            Err(Error::shape(arg, format!("{what} {want} as in {other}"), shape))
        };
        agree("k", k, "batch", k_batch, batch, "q")?;
        agree("k", k, "dim_qk", k_dim, dim_qk, "q")?;
        if !heads.is_multiple_of(heads_kv) {
            let expected = format!("heads that divide the {heads} heads of q");
            return Err(Error::shape("k", expected, k));
        }
        agree("v", v, "batch", v_batch, batch, "q")?;
        agree("v", v, "heads", v_heads, heads_kv, "k")?;
        agree("v", v, "keys", v_keys, keys, "k")?;
        Ok(AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v })
    }

    /// Shape of the queries.
    pub fn q(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.dim_qk]
    }

    /// Shape of the keys.
    pub fn k(&self) -> [usize; 4] {
        [self.batch, self.heads_kv, self.keys, self.dim_qk]
    }

    /// Shape of the values.
    pub fn v(&self) -> [usize; 4] {
        [self.batch, self.heads_kv, self.keys, self.dim_v]
    }

    /// Shape of the output.
    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.dim_v]
    }

    /// Shape of the log-sum-exp and of the other statistics of rows.
    pub fn lse(&self) -> [usize; 3] {
        [self.batch, self.heads, self.queries]
    }

    /// Number of queries and keys.
    pub fn lengths(&self) -> Lengths {
        Lengths::new(self.queries, self.keys)
    }

    /// Query heads that share one key head, at least 1.
    pub fn group(&self) -> usize {
        self.heads.checked_div(self.heads_kv).unwrap_or(1).max(1)
    }

    /// Floating-point operations of a forward pass under `mask`: a multiplication and an addition
    /// for each element of the products q . k and p v of allowed pairs.
    pub fn flops(&self, mask: &Mask) -> f64 {
        let per_pair = 2.0
            * (self.dim_qk as f64 + self.dim_v as f64)
            * (self.heads as f64 * self.batch as f64);
        // An empty tensor can have any number of queries: they are not to be counted one by one.
        if per_pair == 0.0 { 0.0 } else { per_pair * mask.pairs(self.lengths()) as f64 }
    }
}

fn rank_4(arg: &'static str, expected: &str, shape: &[usize]) -> Result<[usize; 4]> {
    shape.try_into().map_err(|_| Error::shape(arg, expected, shape))
}
