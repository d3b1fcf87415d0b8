//! Tensors: transfer, views, copies, errors.

mod common;

use attn_wgpu::{DType, Element, Error, Tensor, ops, wgpu};
use common::gpu;
use half::{bf16, f16};
use proptest::prelude::*;

fn round_trip<T: Element + PartialEq + std::fmt::Debug>(data: Vec<T>) {
    let Some(gpu) = gpu() else { return };
    for length in [0, 1, 2, 3, 5, data.len()] {
        let tensor = Tensor::from_slice(&gpu, &data[..length], &[length]).unwrap();
        assert_eq!(tensor.dtype(), T::DTYPE);
        assert_eq!(tensor.to_vec::<T>().unwrap(), data[..length]);
        // Half types may begin and end in the middle of a word.
        for start in 0..length.min(4) {
            let view = tensor.narrow(0, start, length - start).unwrap();
            assert_eq!(view.to_vec::<T>().unwrap(), data[start..length]);
        }
    }
}

#[test]
fn every_type_comes_back_as_it_went() {
    round_trip((0..77).map(|i| i as f32 * 0.5 - 3.0).collect());
    round_trip((0..77).map(|i| f16::from_f32(i as f32)).collect());
    round_trip((0..77).map(|i| bf16::from_f32(i as f32)).collect());
    round_trip((0..77u32).map(|i| u32::MAX - i).collect());
    round_trip((0..77).map(|i| i32::MIN + i).collect());
}

#[test]
fn arrays_in_any_layout() {
    let Some(gpu) = gpu() else { return };
    let array =
        attn_core::ndarray::Array::from_shape_fn((3, 5), |(i, j)| (i * 5 + j) as f32).into_dyn();
    let transposed = array.t();
    let tensor = Tensor::from_array(&gpu, &transposed).unwrap();
    assert_eq!(tensor.shape(), [5, 3]);
    assert_eq!(tensor.to_array::<f32>().unwrap(), transposed);
}

#[test]
fn dimensions_split_whatever_their_strides() {
    let Some(gpu) = gpu() else { return };
    let data: Vec<u32> = (0..48).collect();
    // Two of six columns heads wide, of every token: [tokens, heads * dim] as [1, heads, tokens, dim].
    let rows = Tensor::from_slice(&gpu, &data, &[4, 12]).unwrap().narrow(1, 2, 6).unwrap();
    let heads = rows.split(1, &[3, 2]).unwrap().permute(&[1, 0, 2]).unwrap();
    let heads = heads.split(0, &[1, 3]).unwrap();
    assert_eq!(heads.shape(), [1, 3, 4, 2]);
    let expected: Vec<u32> = (0..3)
        .flat_map(|head| {
            (0..4).flat_map(move |token| [0, 1].map(|i| token * 12 + 2 + head * 2 + i))
        })
        .collect();
    assert_eq!(heads.to_vec::<u32>().unwrap(), expected);
}

#[test]
fn wrong_arguments_are_typed_errors_that_name_them() {
    let Some(gpu) = gpu() else { return };
    let tensor = Tensor::from_slice(&gpu, &[0f32; 24], &[2, 3, 4]).unwrap();
    let message = |error: Error| error.to_string();
    let cases = [
        (message(Tensor::from_slice(&gpu, &[0f32; 5], &[2, 3]).unwrap_err()), "`shape`"),
        (
            message(tensor.narrow(1, 2, 2).unwrap_err()),
            "`start + len` is 2 + 2, expected at most 3",
        ),
        (message(tensor.narrow(1, usize::MAX, 2).unwrap_err()), "at most 3"),
        (message(tensor.narrow(3, 0, 0).unwrap_err()), "`dim` is 3, expected below 3"),
        (message(tensor.permute(&[0, 0, 1]).unwrap_err()), "permutation of 0..3"),
        (message(tensor.permute(&[0, 1]).unwrap_err()), "permutation of 0..3"),
        (message(tensor.reshape(&[5, 5]).unwrap_err()), "24 elements"),
        (message(tensor.reshape(&[usize::MAX, 2]).unwrap_err()), "24 elements"),
        (message(tensor.expand(&[2, 3, 5]).unwrap_err()), "extents of 1"),
        (message(tensor.split(1, &[2, 2]).unwrap_err()), "3 elements"),
        (message(tensor.split(3, &[1]).unwrap_err()), "`dim` is 3, expected below 3"),
        (message(tensor.to_vec::<u32>().unwrap_err()), "element type f32, expected u32"),
    ];
    for (message, part) in cases {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn a_callers_buffer() {
    let Some(gpu) = gpu() else { return };
    let buffer = |usage| {
        let size = 4 * 100;
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let storage = wgpu::BufferUsages::STORAGE;
    let usages = storage | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let own = buffer(usages);
    let view = |offset, shape: &[usize], strides: &[usize]| {
        Tensor::from_buffer(&gpu, own.clone(), offset, shape, strides, DType::F32)
    };
    let source = Tensor::from_slice(&gpu, &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    let target = view(17, &[2, 3], &[40, 2]).unwrap();
    ops::copy(&source, &target).unwrap();
    assert_eq!(target.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!(view(0, &[100], &[1]).is_ok());
    for (offset, shape, strides) in [
        (1, vec![100], vec![1]),
        (0, vec![2, 3], vec![97, 2]),
        (usize::MAX, vec![2], vec![1]),
        (0, vec![2, 2], vec![usize::MAX, 1]),
        (0, vec![2, 2], vec![1]),
    ] {
        let outcome = view(offset, &shape, &strides);
        assert!(matches!(outcome, Err(Error::Core(attn_core::Error::Shape { .. }))), "{outcome:?}");
    }
    let outcome = Tensor::from_buffer(&gpu, buffer(storage), 0, &[1], &[1], DType::F32);
    assert!(matches!(outcome, Err(Error::Core(attn_core::Error::Data { .. }))), "{outcome:?}");
}

/// Halves share words; a strided view of them still comes back element by element.
#[test]
fn strided_views_of_halves() {
    let Some(gpu) = gpu() else { return };
    for (rows, columns) in [(2, 2), (3, 5), (1, 7), (7, 1)] {
        let data: Vec<f16> = (0..rows * columns).map(|i| f16::from_f32(i as f32)).collect();
        let tensor = Tensor::from_slice(&gpu, &data, &[rows, columns]).unwrap();
        let got = tensor.permute(&[1, 0]).unwrap().to_vec::<f16>().unwrap();
        let want: Vec<f16> = (0..columns)
            .flat_map(|c| (0..rows).map(move |r| (r, c)))
            .map(|(r, c)| data[r * columns + c])
            .collect();
        assert_eq!(got, want, "{rows} {columns}");
    }
}

/// Rows of halves that a copy makes longer end in zeros, the last row too.
#[test]
fn padded_halves() {
    let Some(gpu) = gpu() else { return };
    for (rows, from, to) in [(3, 5, 8), (1, 3, 4), (7, 2, 9)] {
        let source = Tensor::from_slice(&gpu, &vec![f16::ONE; rows * from], &[rows, from]).unwrap();
        let nan = vec![f16::NAN; rows * to];
        let target = Tensor::from_slice(&gpu, &nan, &[rows, to]).unwrap();
        ops::copy(&source, &target).unwrap();
        for (i, x) in target.to_vec::<f16>().unwrap().into_iter().enumerate() {
            assert_eq!(
                x.to_f32(),
                if i % to < from { 1.0 } else { 0.0 },
                "{rows} {from} {to}: {i}"
            );
        }
    }
}

/// Counts that fill the last workgroup to its last lane.
#[test]
fn fill_and_copy_of_whole_workgroups() {
    let Some(gpu) = gpu() else { return };
    let filled = Tensor::full(&gpu, &[5_120], 3u32).unwrap();
    assert!(filled.to_vec::<u32>().unwrap().iter().all(|&x| x == 3));
    let target = Tensor::uninit(&gpu, &[5_120], DType::U32).unwrap();
    ops::copy(&filled, &target).unwrap();
    assert!(target.to_vec::<u32>().unwrap().iter().all(|&x| x == 3));
}

/// Into a view whose first extent has the smallest stride: what lies behind it stays.
#[test]
fn copies_write_nothing_but_their_target() {
    let Some(gpu) = gpu() else { return };
    let all = Tensor::full(&gpu, &[2, 2, 2, 5], 7u32).unwrap();
    let view = all.narrow(3, 0, 3).unwrap().permute(&[3, 0, 1, 2]).unwrap();
    let source = Tensor::full(&gpu, &[3, 2, 2, 2], 9u32).unwrap();
    ops::copy(&source, &view).unwrap();
    for (i, x) in all.to_vec::<u32>().unwrap().into_iter().enumerate() {
        assert_eq!(x, if i % 5 < 3 { 9 } else { 7 }, "{i}");
    }
}

/// A buffer freed while commands that read it wait must not be overwritten by the next upload.
#[test]
fn uploads_never_overtake_recorded_commands() {
    let Some(gpu) = gpu() else { return };
    let mut copies = Vec::new();
    for i in 0..200u32 {
        let source = Tensor::from_slice(&gpu, &vec![i; 300], &[20, 15]).unwrap();
        // A copy is recorded, and the source given back to the pool at once.
        copies.push(source.permute(&[1, 0]).unwrap().contiguous().unwrap());
    }
    for (i, copy) in copies.iter().enumerate() {
        assert!(copy.to_vec::<u32>().unwrap().iter().all(|&x| x == i as u32), "{i}");
    }
}

#[test]
fn fill_of_a_part() {
    let Some(gpu) = gpu() else { return };
    let tensor = Tensor::full(&gpu, &[50], 1u32).unwrap();
    let zero = Tensor::full(&gpu, &[1], 9u32).unwrap();
    for (start, len) in [(3, 5), (16, 1), (40, 10)] {
        let part = tensor.narrow(0, start, len).unwrap();
        ops::copy(&zero.expand(&[len]).unwrap(), &part).unwrap();
    }
    let got = tensor.to_vec::<u32>().unwrap();
    for (i, x) in got.into_iter().enumerate() {
        let inside = (3..8).contains(&i) || i == 16 || i >= 40;
        assert_eq!(x, if inside { 9 } else { 1 }, "{i}");
    }
}

proptest! {
    #![proptest_config(common::cases(64))]

    /// A contiguous copy of any view holds the elements of the view.
    #[test]
    fn copies_of_views(
        shape in prop::collection::vec(1..6usize, 4),
        order in Just([0, 1, 2, 3]).prop_shuffle(),
        cuts in prop::collection::vec((0..5usize, 0..5usize), 4),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let count: usize = shape.iter().product();
        let data: Vec<i32> = (0..count as i32).collect();
        let host = attn_core::ndarray::ArrayD::from_shape_vec(shape.clone(), data.clone()).unwrap();
        let mut view = Tensor::from_slice(&gpu, &data, &shape).unwrap().permute(&order).unwrap();
        let mut want = host.view().permuted_axes(order.to_vec());
        for (dim, (start, len)) in cuts.into_iter().enumerate() {
            let extent = view.shape()[dim];
            let start = start.min(extent - 1);
            let len = len.min(extent - start);
            view = view.narrow(dim, start, len).unwrap();
            want.slice_axis_inplace(attn_core::ndarray::Axis(dim), (start..start + len).into());
        }
        let copy = view.contiguous().unwrap();
        prop_assert!(copy.is_contiguous());
        prop_assert_eq!(copy.to_array::<i32>().unwrap(), want);
    }
}
