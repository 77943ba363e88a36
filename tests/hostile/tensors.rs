//! Tensors that cannot be what they say.

use proptest::prelude::*;

use super::make::{View, call, dict, global, int, ints, pickle, text, torch_zip, tuple};
use super::{read, refused};
use crate::words::InFull;

fn zip(view: &View) -> Vec<u8> {
    torch_zip(&pickle(&dict(&[(text("w"), view.pickled())])))
}

#[test]
fn a_view_beyond_its_storage_is_refused() {
    for view in [
        View { offset: 1, ..View::default() },
        View { offset: i64::MAX, ..View::default() },
        View { shape: vec![2, 3], ..View::default() },
        View { strides: vec![3, 1], ..View::default() },
        View { shape: vec![4], strides: vec![i64::MAX], ..View::default() },
    ] {
        let message = refused(zip(&view));
        assert!(message.contains("tensor `w`: "), "{message}");
    }
}

#[test]
fn negative_sizes_and_strides_are_refused() {
    for view in [
        View { offset: -1, ..View::default() },
        View { shape: vec![-2, 2], ..View::default() },
        View { strides: vec![2, -1], ..View::default() },
    ] {
        assert!(refused(zip(&view)).contains("size"));
    }
}

#[test]
fn a_shape_that_overflows_is_refused() {
    for shape in [vec![i64::MAX, i64::MAX], vec![0, i64::MAX, 4], vec![1 << 40, 1 << 40, 0]] {
        let strides = vec![0; shape.len()];
        assert!(refused(zip(&View { shape, strides, ..View::default() })).contains("overflows"));
    }
}

#[test]
fn a_shape_with_too_many_axes_is_refused() {
    let message = refused(zip(&View { shape: vec![1; 1000], strides: vec![1; 1000], ..View::default() }));
    assert!(message.contains("it has 1000 axes"), "{message}");
}

#[test]
fn a_shape_without_its_strides_is_refused() {
    assert!(refused(zip(&View { strides: vec![1], ..View::default() })).contains("2 axes and 1 strides"));
}

#[test]
fn strides_that_no_element_follows_cannot_overflow() {
    let view = View { shape: vec![2, 1, 2], strides: vec![1, i64::MAX, 2], ..View::default() };
    let checkpoint = read(zip(&view)).unwrap();
    let bytes = checkpoint.bytes(&checkpoint.tensors()[0]).unwrap();
    let floats: Vec<f32> = bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(floats, [0.0, 2.0, 1.0, 3.0]);
    let view = View { offset: i64::MAX / 8, shape: vec![0], strides: vec![i64::MAX], ..View::default() };
    assert_eq!(read(zip(&view)).unwrap().tensors()[0].shape, [0]);
}

#[test]
fn an_expanded_tensor_larger_than_the_file_is_listed_but_not_made() {
    let view = View { shape: vec![1 << 20, 1 << 20], strides: vec![0, 0], ..View::default() };
    let checkpoint = read(zip(&view)).unwrap();
    let message = checkpoint.bytes(&checkpoint.tensors()[0]).unwrap_err().in_full();
    assert!(message.contains("tensor `w`: it repeats its elements to 4398046511104 bytes"), "{message}");
    assert!(checkpoint.span(&checkpoint.tensors()[0]).is_none());
}

#[test]
fn a_storage_of_another_size_is_refused() {
    for count in [3, 5, i64::MAX, -1] {
        assert!(refused(zip(&View { count, ..View::default() })).contains("storage `0` says"));
    }
}

#[test]
fn a_storage_that_is_not_there_is_refused() {
    assert!(refused(zip(&View { key: "7", ..View::default() })).contains("storage `7` is not in the file"));
}

#[test]
fn a_type_this_tool_has_no_use_for_is_named() {
    let message = refused(zip(&View { class: "ComplexDoubleStorage", count: 1, ..View::default() }));
    assert!(message.contains("torch.ComplexDoubleStorage"), "{message}");
}

#[test]
fn a_tensor_on_the_meta_device_is_refused() {
    assert!(refused(zip(&View { location: "meta", ..View::default() })).contains("`meta` device"));
    let meta = call(global("torch._utils", "_rebuild_meta_tensor_no_storage"), &[]);
    let message = refused(torch_zip(&pickle(&dict(&[(text("w"), meta)]))));
    assert!(message.contains("tensor `w`") && message.contains("without values"), "{message}");
}

#[test]
fn sparse_and_quantised_tensors_are_refused_by_name() {
    for name in ["_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor"] {
        let tensor = call(global("torch._utils", name), &[]);
        let message = refused(torch_zip(&pickle(&dict(&[(text("w"), tensor)]))));
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let tensor = View::default().pickled();
    let twice = dict(&[(text("w"), tensor.clone()), (text("w"), tensor.clone())]);
    assert!(refused(torch_zip(&pickle(&twice))).contains("tensor `w`: it is there twice"));
    let alike = dict(&[(text("1"), tensor.clone()), (int(1), tensor)]);
    assert!(refused(torch_zip(&pickle(&alike))).contains("tensor `1`: it is there twice"));
}

#[test]
fn a_tensor_under_a_key_that_is_no_text_is_not_lost() {
    let tensor = View::default().pickled();
    let keys = [(int(3), "3"), (b"N".to_vec(), "None"), (b"\x88".to_vec(), "True"), (ints(&[1, 2]), "(1, 2)")];
    for (key, path) in keys {
        let checkpoint = read(torch_zip(&pickle(&dict(&[(key, tensor.clone())])))).unwrap();
        assert_eq!(checkpoint.tensors()[0].path, [path]);
    }
}

#[test]
fn calls_with_the_wrong_arguments_are_refused() {
    let storage = |items: &[Vec<u8>]| [tuple(items), b"Q".to_vec()].concat();
    let rebuild = |name: &str, args: &[Vec<u8>]| call(global("torch._utils", name), args);
    let n = || b"N".to_vec();
    for value in [
        rebuild("_rebuild_tensor_v2", &[]),
        rebuild("_rebuild_tensor_v2", &[n(), n(), n(), n()]),
        rebuild("_rebuild_tensor_v2", &[storage(&[]), int(0), ints(&[]), ints(&[])]),
        rebuild("_rebuild_tensor_v2", &[storage(&[text("module"), n(), n(), n(), n()]), int(0), ints(&[]), ints(&[])]),
        rebuild("_rebuild_tensor_v2", &[storage(&[text("storage"), n(), n(), n(), n()]), int(0), ints(&[]), ints(&[])]),
        rebuild("_rebuild_tensor_v3", &[n(), int(0), ints(&[]), ints(&[])]),
        rebuild("_rebuild_parameter", &[]),
        rebuild("_rebuild_parameter", &[n()]),
        rebuild("_rebuild_parameter", &[storage(&[])]),
        call(global("torch._tensor", "_rebuild_from_type_v2"), &[n()]),
        call(global("torch._tensor", "_rebuild_from_type_v2"), &[global("builtins", "list"), n(), tuple(&[])]),
    ] {
        let message = refused(torch_zip(&pickle(&dict(&[(text("w"), value)]))));
        assert!(message.contains("tensor `w`: "), "{message}");
    }
}

proptest! {
    #[test]
    fn any_view_is_read_whole_or_refused(
        offset in prop_oneof![0i64..6, any::<i64>()],
        axes in proptest::collection::vec((prop_oneof![0i64..5, any::<i64>()], prop_oneof![0i64..5, any::<i64>()]), 0..5),
    ) {
        let (shape, strides) = axes.into_iter().unzip();
        if let Ok(checkpoint) = read(zip(&View { offset, shape, strides, ..View::default() })) {
            let tensor = &checkpoint.tensors()[0];
            let size = tensor.shape.iter().product::<usize>() * 4;
            match checkpoint.bytes(tensor) {
                Ok(bytes) => prop_assert_eq!(bytes.len(), size),
                Err(error) => prop_assert!(error.in_full().contains("repeats its elements")),
            }
        }
    }
}
