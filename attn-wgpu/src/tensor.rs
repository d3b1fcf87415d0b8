//! Tensors on a device.

use std::fmt;
use std::sync::Arc;

use attn_core::ndarray::{ArrayD, ArrayViewD, IxDyn};
use half::{bf16, f16};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::Binding;
use crate::ops;
use crate::pool::{Storage, resident_size};

/// Type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// Upper half of a 32-bit float.
    BF16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The name in errors and reports.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::I32 => "i32",
        }
    }
}

/// Host types that tensors are made of.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The type on the device.
    const DTYPE: DType;
}

macro_rules! element {
    ($($host:ty => $dtype:ident),*) => {
        $(impl Element for $host { const DTYPE: DType = DType::$dtype; })*
    };
}
element!(f32 => F32, f16 => F16, bf16 => BF16, u32 => U32, i32 => I32);

/// A strided view of a device buffer. Cloning and viewing share the buffer.
#[derive(Clone)]
pub struct Tensor {
    gpu: Gpu,
    storage: Arc<Storage>,
    /// In elements, from the start of the buffer.
    offset: usize,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    dtype: DType,
}

impl Tensor {
    /// Copies `data`, in row-major order, to the device.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] if `shape` does not have `data.len()` elements; allocation errors.
    pub fn from_slice<T: Element>(gpu: &Gpu, data: &[T], shape: &[usize]) -> Result<Tensor> {
        if elements(shape) != Some(data.len()) {
            let expected = format!("a shape of {} elements", data.len());
            return Err(attn_core::Error::shape("shape", expected, shape).into());
        }
        let storage = gpu.upload(bytemuck::cast_slice(data))?;
        Ok(Tensor::contiguous_on(gpu, storage, 0, shape, T::DTYPE))
    }

    /// Copies an array to the device.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn from_array<T: Element>(gpu: &Gpu, array: &ArrayViewD<'_, T>) -> Result<Tensor> {
        match array.as_slice() {
            Some(slice) => Tensor::from_slice(gpu, slice, array.shape()),
            None => {
                let copied: Vec<T> = array.iter().copied().collect();
                Tensor::from_slice(gpu, &copied, array.shape())
            }
        }
    }

    /// A tensor whose contents are not specified, for a kernel to write.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] if the size overflows; allocation errors.
    pub fn uninit(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = gpu.allocate(bytes(shape, dtype)?)?;
        Ok(Tensor::contiguous_on(gpu, storage, 0, shape, dtype))
    }

    /// [`Tensor::uninit`] for what stays, such as weights: in a buffer of [`Tensor::resident_bytes`]. Other
    /// tensors get buffers of up to twice their size, so that those which come and go find each other's.
    ///
    /// # Errors
    /// As [`Tensor::uninit`].
    pub fn resident(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = gpu.allocate_resident(bytes(shape, dtype)?)?;
        Ok(Tensor::contiguous_on(gpu, storage, 0, shape, dtype))
    }

    /// Bytes of the buffer of a [`Tensor::resident`] of so many elements: those of the elements, to the
    /// next multiple of 16.
    pub fn resident_bytes(elements: usize, dtype: DType) -> u64 {
        resident_size((elements as u64).saturating_mul(dtype.bytes() as u64))
    }

    /// A tensor of `value`s. Types of 4 bytes.
    ///
    /// # Errors
    /// [`attn_core::Error::Dtype`] for half types; allocation errors.
    pub fn full<T: Element>(gpu: &Gpu, shape: &[usize], value: T) -> Result<Tensor> {
        let tensor = Tensor::uninit(gpu, shape, T::DTYPE)?;
        ops::fill(&tensor, bytemuck::bytes_of(&value))?;
        Ok(tensor)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`Tensor::uninit`].
    pub fn zeros(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = Tensor::uninit(gpu, shape, dtype)?;
        // Whole words: the pool's buffers have room for the rest of the last one.
        let words = (tensor.len() * dtype.bytes()).div_ceil(4);
        let storage = Arc::clone(&tensor.storage);
        ops::fill(&Tensor::contiguous_on(gpu, storage, 0, &[words], DType::U32), &[0; 4])?;
        Ok(tensor)
    }

    /// `words` words of u32 that kernels write and dispatches read their numbers of workgroups from
    /// ([`Kernel::dispatch_indirect`](crate::Kernel::dispatch_indirect)). On a buffer of its own, since
    /// `wgpu` checks buffers that may serve so.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn indirect(gpu: &Gpu, words: usize) -> Result<Tensor> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::INDIRECT;
        let size = (words.max(4) * 4) as u64;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = gpu.guarded("allocate", || gpu.device().create_buffer(&descriptor))?;
        Tensor::from_buffer(gpu, buffer, 0, &[words], &[1], DType::U32)
    }

    /// A tensor on a caller's buffer, which must have the usages `STORAGE`, `COPY_SRC` and
    /// `COPY_DST`. `offset` and `strides` are in elements.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] if the view does not lie inside the buffer.
    pub fn from_buffer(
        gpu: &Gpu,
        buffer: wgpu::Buffer,
        offset: usize,
        shape: &[usize],
        strides: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let misfit =
            |expected: String| Err(attn_core::Error::shape("shape", expected, shape).into());
        if shape.len() != strides.len() {
            return misfit(format!("{} extents, one a stride", strides.len()));
        }
        let usages = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        if !buffer.usage().contains(usages) {
            let got = format!("{:?}", buffer.usage());
            return Err(attn_core::Error::data(
                "buffer",
                "usages STORAGE, COPY_SRC, COPY_DST",
                got,
            )
            .into());
        }
        let capacity = buffer.size() / dtype.bytes() as u64;
        let storage = Arc::new(Storage::external(buffer));
        let (shape_vec, strides) = (shape.to_vec(), strides.to_vec());
        let tensor = Tensor { gpu: gpu.clone(), storage, offset, shape: shape_vec, strides, dtype };
        match tensor.end() {
            Some(end) if end as u64 <= capacity => Ok(tensor),
            _ => misfit(format!("a view inside the buffer's {capacity} elements")),
        }
    }

    pub(crate) fn contiguous_on(
        gpu: &Gpu,
        storage: Arc<Storage>,
        offset: usize,
        shape: &[usize],
        dtype: DType,
    ) -> Tensor {
        let strides = row_major(shape);
        Tensor { gpu: gpu.clone(), storage, offset, shape: shape.to_vec(), strides, dtype }
    }

    /// Writes words from the host into a contiguous tensor of them, from word `start` on. Commands that were
    /// recorded before see the old contents.
    pub(crate) fn write_words(&self, start: usize, words: &[u32]) -> Result<()> {
        let fits = start.checked_add(words.len()).is_some_and(|end| end <= self.len());
        if self.dtype != DType::U32 || !self.is_contiguous() || !fits {
            let expected = format!("{} words from {start} on", words.len());
            return Err(attn_core::Error::shape("tensor", expected, &self.shape).into());
        }
        let at = (self.offset + start) as u64 * 4;
        self.gpu.write(&self.storage, at, bytemuck::cast_slice(words))
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer, and the offset of the first element in it, in elements.
    pub fn buffer(&self) -> (&wgpu::Buffer, usize) {
        (&self.storage.buffer, self.offset)
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let expected = row_major(&self.shape);
        self.is_empty()
            || (0..self.shape.len()).all(|d| self.shape[d] == 1 || self.strides[d] == expected[d])
    }

    /// The same elements with dimensions in another order.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if `order` is not a permutation.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if sorted.iter().copied().ne(0..self.shape.len()) {
            let expected = format!("a permutation of 0..{}", self.shape.len());
            return Err(attn_core::Error::config("order", expected, format!("{order:?}")).into());
        }
        let mut view = self.clone();
        view.shape = order.iter().map(|&d| self.shape[d]).collect();
        view.strides = order.iter().map(|&d| self.strides[d]).collect();
        Ok(view)
    }

    /// Elements `start..start + len` along dimension `dim`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the dimension or the range does not exist.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        let Some(&extent) = self.shape.get(dim) else {
            let expected = format!("below {}", self.shape.len());
            return Err(attn_core::Error::config("dim", expected, dim).into());
        };
        if start.checked_add(len).is_none_or(|end| end > extent) {
            let got = format!("{start} + {len}");
            return Err(
                attn_core::Error::config("start + len", format!("at most {extent}"), got).into()
            );
        }
        let mut view = self.clone();
        view.shape[dim] = len;
        view.offset += if len == 0 { 0 } else { start * self.strides[dim] };
        Ok(view)
    }

    /// The same elements, in order, with another shape.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] if the number of elements differs or the tensor is not
    /// contiguous.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if elements(shape) != Some(self.len()) || !self.is_contiguous() {
            let expected = format!("{} elements of a contiguous tensor", self.len());
            return Err(attn_core::Error::shape("shape", expected, shape).into());
        }
        let mut view = self.clone();
        view.shape = shape.to_vec();
        view.strides = row_major(shape);
        Ok(view)
    }

    /// The same elements with dimension `dim` split into `extents`, row-major: `[tokens, heads * dim]`
    /// becomes `[tokens, heads, dim]`, whatever the strides. An extent of 1 more is a split, too.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the dimension does not exist, [`attn_core::Error::Shape`] if
    /// `extents` does not multiply to its extent.
    pub fn split(&self, dim: usize, extents: &[usize]) -> Result<Tensor> {
        let Some(&extent) = self.shape.get(dim) else {
            let expected = format!("below {}", self.shape.len());
            return Err(attn_core::Error::config("dim", expected, dim).into());
        };
        if elements(extents) != Some(extent) {
            let expected = format!("{extent} elements");
            return Err(attn_core::Error::shape("extents", expected, extents).into());
        }
        let mut view = self.clone();
        let stride = self.strides[dim];
        let strides: Vec<_> = row_major(extents).into_iter().map(|inner| inner * stride).collect();
        view.shape.splice(dim..=dim, extents.iter().copied());
        view.strides.splice(dim..=dim, strides);
        Ok(view)
    }

    /// Repeats extents of 1 along `shape` without copying (stride 0); for reading only.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] if another extent differs.
    pub fn expand(&self, shape: &[usize]) -> Result<Tensor> {
        let fits = shape.len() == self.shape.len()
            && self.shape.iter().zip(shape).all(|(have, want)| have == want || *have == 1);
        if !fits {
            let expected = format!("{:?} with extents of 1 replaced", self.shape);
            return Err(attn_core::Error::shape("shape", expected, shape).into());
        }
        let mut view = self.clone();
        for (dim, &extent) in shape.iter().enumerate() {
            if self.shape[dim] != extent {
                view.strides[dim] = 0;
            }
        }
        view.shape = shape.to_vec();
        Ok(view)
    }

    /// A tensor with the same elements in row-major order: itself where it is so already, else a
    /// copy. Up to four dimensions of extent above 1.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] beyond that; device errors.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let copy = Tensor::uninit(&self.gpu, &self.shape, self.dtype)?;
        ops::copy(self, &copy)?;
        Ok(copy)
    }

    /// Copies the elements to the host, in row-major order. Blocks until the device is done.
    ///
    /// # Errors
    /// [`attn_core::Error::Dtype`] if `T` is not the tensor's type; device errors.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.check_dtype::<T>()?;
        let tensor = self.contiguous()?;
        let (offset, bytes, skip) = tensor.read_range();
        let data = tensor.gpu.read(&tensor.storage, offset, bytes)?;
        Ok(tensor.collect(&data, skip))
    }

    /// Like [`Tensor::to_vec`], without blocking.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub async fn to_vec_async<T: Element>(&self) -> Result<Vec<T>> {
        self.check_dtype::<T>()?;
        let tensor = self.contiguous()?;
        let (offset, bytes, skip) = tensor.read_range();
        let data = tensor.gpu.read_async(&tensor.storage, offset, bytes).await?;
        Ok(tensor.collect(&data, skip))
    }

    /// [`Tensor::to_vec`] as an array of the tensor's shape.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>> {
        let data = self.to_vec()?;
        ArrayD::from_shape_vec(IxDyn(&self.shape), data)
            .map_err(|error| attn_core::Error::data("tensor", "its elements", error).into())
    }

    fn check_dtype<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE {
            return Ok(());
        }
        let (expected, got) = (T::DTYPE.name().into(), self.dtype.name().into());
        Err(attn_core::Error::Dtype { arg: "tensor", expected, got }.into())
    }

    /// Offset and size of a copy, in bytes and multiples of 4, and the bytes to skip in front.
    fn read_range(&self) -> (u64, u64, usize) {
        let size = self.dtype.bytes();
        let start = self.offset * size;
        let skip = start % 4;
        let end = (start + self.len() * size).next_multiple_of(4);
        let bytes = if self.is_empty() { 0 } else { end - (start - skip) };
        ((start - skip) as u64, bytes as u64, skip)
    }

    fn collect<T: Element>(&self, data: &[u8], skip: usize) -> Vec<T> {
        let size = size_of::<T>();
        data[skip.min(data.len())..]
            .chunks_exact(size)
            .take(self.len())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }

    /// Number of the first element behind the view, or `None` on overflow.
    fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(self.offset);
        }
        let steps = self.shape.iter().zip(&self.strides);
        steps
            .map(|(extent, stride)| (extent - 1).checked_mul(*stride))
            .try_fold(self.offset, |sum, step| sum.checked_add(step?))?
            .checked_add(1)
    }

    /// What a kernel binds to read or write this view, and the offset of the view's first element
    /// behind the start of the binding, in elements: bindings start at aligned offsets.
    pub fn binding(&self) -> (Binding, usize) {
        let size = self.dtype.bytes() as u64;
        let start = self.offset as u64 * size;
        let end = self.end().unwrap_or(self.offset) as u64 * size;
        let aligned = start - start % self.gpu.capabilities().offset_alignment;
        let capacity = self.storage.buffer.size();
        // A binding holds whole words at least; the pool's buffers are larger than that.
        let end = end.max(aligned + 4).next_multiple_of(4).min(capacity);
        let bytes = end.saturating_sub(aligned);
        let binding = Binding { storage: Arc::clone(&self.storage), offset: aligned, bytes };
        (binding, ((start - aligned) / size) as usize)
    }

    /// As [`Tensor::binding`], but of the whole buffer, where a binding may be so large: views that
    /// move through one buffer then share a bind group.
    pub(crate) fn whole_binding(&self) -> (Binding, usize) {
        let bytes = self.storage.buffer.size() / 4 * 4;
        if bytes > self.gpu.capabilities().max_binding_bytes.min(1 << 32) {
            return self.binding();
        }
        (Binding { storage: Arc::clone(&self.storage), offset: 0, bytes }, self.offset)
    }

    /// The same buffer from the same element on with another shape and other strides, which must stay
    /// inside what the tensor covers.
    pub(crate) fn with_layout(&self, shape: &[usize], strides: &[usize]) -> Tensor {
        Tensor { shape: shape.to_vec(), strides: strides.to_vec(), ..self.clone() }
    }

    /// The same bits read as another type of the same size.
    pub(crate) fn reinterpret(&self, dtype: DType) -> Tensor {
        Tensor { dtype, ..self.clone() }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}

/// Bytes of the elements of a tensor.
fn bytes(shape: &[usize], dtype: DType) -> Result<u64> {
    let bytes = elements(shape).and_then(|count| count.checked_mul(dtype.bytes()));
    let expected = "a size below the address space";
    let error = || attn_core::Error::shape("shape", expected, shape).into();
    bytes.map(|bytes| bytes as u64).ok_or_else(error)
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (0..shape.len().saturating_sub(1)).rev() {
        strides[dim] = strides[dim + 1] * shape[dim + 1].max(1);
    }
    strides
}
