//! The zip and its pickle, read back by this crate's own reader; PyTorch reads them in tests/interop.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use super::archive::Archive;
use super::*;
use crate::checkpoint::Checkpoint;

fn bytes_of(state: &State<'_>, limit: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |bytes: &[u8]| -> Result<(), std::convert::Infallible> {
        out.extend_from_slice(bytes);
        Ok(())
    };
    let Ok(()) = state.write_into(Archive::with_limit(&mut put, limit));
    out
}

#[test]
fn what_is_written_is_read_back_with_small_fields_and_with_wide_ones() {
    let weight: Vec<u8> = (0..24u8).collect();
    let index: Vec<u8> = [3i64, -7].into_iter().flat_map(i64::to_le_bytes).collect();
    let tensors = || {
        vec![
            StateTensor::new("a.weight", Dtype::F32, &[2, 3], &weight).unwrap(),
            StateTensor::new("a.half", Dtype::F16, &[12], &weight).unwrap(),
            StateTensor::new("index", Dtype::I64, &[2, 1], &index).unwrap(),
            StateTensor::new("again", Dtype::I64, &[2], &index).unwrap(),
        ]
    };
    for limit in [0xffff_ffff, 0] {
        for (wrap, depth) in [(None, 1), (Some("model"), 2)] {
            let file = bytes_of(&State { wrap, tensors: tensors() }, limit);
            let read = Checkpoint::from_bytes("written.pth", file.clone().into()).unwrap();
            let names: Vec<String> = read.tensors().iter().map(|entry| entry.path.join("/")).collect();
            let prefix = if depth == 2 { "model/" } else { "" };
            assert_eq!(names, ["a.weight", "a.half", "index", "again"].map(|name| format!("{prefix}{name}")));
            for (entry, tensor) in read.tensors().iter().zip(tensors()) {
                assert_eq!(entry.shape, tensor.shape);
                assert_eq!(*read.bytes(entry).unwrap(), *tensor.bytes);
            }
            // `index` and `again` are one storage; the halves of a float's memory are another type's.
            let entries = file.windows(13).filter(|window| window.starts_with(b"archive/data/")).count();
            assert_eq!(entries, 2 * 3);
        }
    }
}

#[test]
fn every_storage_starts_on_a_multiple_of_64() {
    let values: Vec<Vec<u8>> = (1..40).map(|count| vec![count; 4 * usize::from(count)]).collect();
    let names: Vec<String> = (0..values.len()).map(|at| format!("{at}").repeat(at + 1)).collect();
    let shapes: Vec<[usize; 1]> = values.iter().map(|bytes| [bytes.len() / 4]).collect();
    let tensors = values.iter().zip(&names).zip(&shapes);
    let tensors =
        tensors.map(|((bytes, name), shape)| StateTensor::new(name, Dtype::F32, shape, bytes).unwrap()).collect();
    for limit in [0xffff_ffff, 0] {
        let file = bytes_of(&State { wrap: None, tensors: Vec::new() }, limit);
        assert!(Checkpoint::from_bytes("empty.pth", file.into()).unwrap().tensors().is_empty());
    }
    let state = State { wrap: None, tensors };
    for limit in [0xffff_ffff, 0] {
        let file = bytes_of(&state, limit);
        for bytes in &values {
            let at = file.windows(bytes.len()).position(|window| window == bytes.as_slice()).unwrap();
            // The bytes of 1 to 39 stand nowhere else in a row, except where a longer run holds a shorter one.
            assert_eq!(at % 64, 0, "{} bytes of {}", bytes.len(), bytes[0]);
        }
    }
}
