//! Keys and values of the tokens so far, for decoding.

use std::sync::Arc;

use crate::elementwise::{self, Function};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::rows;
use crate::tensor::{DType, Tensor};

/// Keys `[batch, heads_kv, len, dim_k]` and values `[batch, heads_kv, len, dim_v]` of one layer, in
/// buffers with room for more tokens.
///
/// The buffers grow by at least doubling; what they hold is copied on the device. [`KvCache::fork`]
/// shares them until one of the forks appends. Rows are kept at multiples of four elements.
#[derive(Debug)]
pub struct KvCache {
    gpu: Gpu,
    batch: usize,
    heads_kv: usize,
    dims: [usize; 2],
    dtype: DType,
    len: usize,
    buffers: Arc<Buffers>,
}

/// Keys and values `[batch, heads_kv, capacity, dim]`, dims filled up to multiples of four.
#[derive(Debug)]
struct Buffers([Tensor; 2]);

impl KvCache {
    /// An empty cache with room for `capacity` tokens, stored as `dtype`: f32, f16 or bf16.
    ///
    /// # Errors
    /// [`attn_core::Error::Dtype`] for types of integers; allocation errors.
    pub fn new(
        gpu: &Gpu,
        batch: usize,
        heads_kv: usize,
        dim_k: usize,
        dim_v: usize,
        dtype: DType,
        capacity: usize,
    ) -> Result<KvCache> {
        rows::check_float("dtype", dtype)?;
        let dims = [dim_k, dim_v];
        let buffers = Arc::new(Buffers::new(gpu, [batch, heads_kv, capacity], dims, dtype)?);
        Ok(KvCache { gpu: gpu.clone(), batch, heads_kv, dims, dtype, len: 0, buffers })
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.buffers.0[0].shape()[2]
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the buffers, room included. Forks that share buffers count them each.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.len() * tensor.dtype().bytes()) as u64;
        self.buffers.0.iter().map(bytes).sum()
    }

    /// The keys, `[batch, heads_kv, len, dim_k]`: a view that shows what is written later to the
    /// tokens it covers, after a [`KvCache::truncate`].
    ///
    /// # Errors
    /// None in practice.
    pub fn keys(&self) -> Result<Tensor> {
        self.view(0, 0, self.len)
    }

    /// The values, `[batch, heads_kv, len, dim_v]`, as [`KvCache::keys`].
    ///
    /// # Errors
    /// None in practice.
    pub fn values(&self) -> Result<Tensor> {
        self.view(1, 0, self.len)
    }

    /// Appends the keys and values of some tokens, `[batch, heads_kv, tokens, dim]`, of any floating
    /// type and any strides of rows. They are rounded to the cache's type.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other shapes or types; allocation errors. The cache is as before
    /// then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let tokens = k.shape().get(2).copied().unwrap_or(0);
        for (arg, tensor, dim) in [("k", k, self.dims[0]), ("v", v, self.dims[1])] {
            rows::check(arg, tensor, &self.gpu)?;
            let shape = [self.batch, self.heads_kv, tokens, dim];
            rows::check_form(arg, tensor, &shape, tensor.dtype())?;
        }
        self.reserve(tokens)?;
        for (buffer, source) in self.buffers.0.iter().zip([k, v]) {
            if !source.is_empty() {
                let slot = buffer.narrow(2, self.len, tokens)?;
                elementwise::run(Function::Convert, &[source], &slot)?;
            }
        }
        self.len += tokens;
        Ok(())
    }

    /// Appends `tokens` tokens whose keys and values the caller writes into the returned views,
    /// `[batch, heads_kv, tokens, dim]`, for example by
    /// [`RopeTable::apply_into`](crate::rope::RopeTable::apply_into). Until then they are not
    /// specified.
    ///
    /// Where a dim is not a multiple of four, a half type cannot be written so, only by
    /// [`KvCache::append`].
    ///
    /// # Errors
    /// Allocation errors.
    pub fn slot(&mut self, tokens: usize) -> Result<(Tensor, Tensor)> {
        self.reserve(tokens)?;
        let slot = (self.view(0, self.len, tokens)?, self.view(1, self.len, tokens)?);
        self.len += tokens;
        Ok(slot)
    }

    /// Makes room for `tokens` more tokens, in buffers that no fork shares.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let needed = self.len + tokens;
        let is_alone = Arc::get_mut(&mut self.buffers).is_some();
        let fits = needed <= self.capacity();
        if tokens == 0 || (is_alone && fits) {
            return Ok(());
        }
        let capacity = if fits { self.capacity() } else { needed.max(2 * self.capacity()).max(16) };
        let extents = [self.batch, self.heads_kv, capacity];
        let grown = Buffers::new(&self.gpu, extents, self.dims, self.dtype)?;
        for (old, new) in self.buffers.0.iter().zip(&grown.0) {
            let (old, new) = (old.narrow(2, 0, self.len)?, new.narrow(2, 0, self.len)?);
            if !old.is_empty() {
                elementwise::run(Function::Convert, &[&old], &new)?;
            }
        }
        self.buffers = Arc::new(grown);
        Ok(())
    }

    /// Forgets all tokens from number `len` on.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            let expected = format!("at most {}", self.len);
            return Err(attn_core::Error::config("len", expected, len).into());
        }
        self.len = len;
        Ok(())
    }

    /// A cache with the same tokens, which goes its own way from here. Nothing is copied until one of
    /// the two appends.
    pub fn fork(&self) -> KvCache {
        KvCache { gpu: self.gpu.clone(), buffers: Arc::clone(&self.buffers), ..*self }
    }

    fn view(&self, which: usize, start: usize, len: usize) -> Result<Tensor> {
        self.buffers.0[which].narrow(2, start, len)?.narrow(3, 0, self.dims[which])
    }
}

impl Buffers {
    fn new(gpu: &Gpu, extents: [usize; 3], dims: [usize; 2], dtype: DType) -> Result<Buffers> {
        let [batch, heads, capacity] = extents;
        let buffer = |dim: usize| {
            Tensor::uninit(gpu, &[batch, heads, capacity, dim.next_multiple_of(4)], dtype)
        };
        Ok(Buffers([buffer(dims[0])?, buffer(dims[1])?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decoding appends token after token; a bind group is made once for all of them only if the
    /// bindings do not move.
    #[test]
    fn appended_tokens_share_a_binding() -> Result<()> {
        let Some(gpu) = crate::testing::open() else { return Ok(()) };
        let mut cache = KvCache::new(&gpu, 1, 2, 8, 8, DType::F16, 32)?;
        let mut bound = Vec::new();
        for _ in 0..32 {
            let (binding, place) = rows::bind_target(&cache.slot(1)?.0, &[]);
            bound.push((binding.offset, binding.bytes, place[1..].to_vec()));
        }
        assert!(bound.iter().all(|other| *other == bound[0]), "{bound:?}");
        Ok(())
    }
}
