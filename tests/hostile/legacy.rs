//! Legacy streams and tars that do not hold.

use super::make::{View, dict, global, int, legacy, list, pickle, text, tuple};
use super::{read, refused};

fn stream(view: &View, keys: &[&str], storages: &[u8]) -> Vec<u8> {
    legacy(&dict(&[(text("w"), view.pickled())]), keys, storages)
}

fn storage(count: u64, floats: usize) -> Vec<u8> {
    [&count.to_le_bytes()[..], &vec![0; floats * 4]].concat()
}

#[test]
fn the_stream_that_the_attacks_start_from_is_read() {
    assert_eq!(read(stream(&View::default(), &["0"], &storage(4, 4))).unwrap().tensors().len(), 1);
}

#[test]
fn a_huge_element_count_is_refused() {
    for count in [5, 1 << 40, u64::MAX / 4, u64::MAX] {
        let message = refused(stream(&View::default(), &["0"], &storage(count, 4)));
        assert!(message.contains("ends inside storage `0`"), "{message}");
    }
}

#[test]
fn a_storage_the_stream_does_not_hold_is_refused() {
    assert!(refused(stream(&View::default(), &[], b"")).contains("storage `0` is not in the file"));
    assert!(refused(stream(&View::default(), &["0"], b"")).contains("ends inside storage `0`"));
}

#[test]
fn a_storage_nothing_refers_to_is_refused() {
    assert!(refused(stream(&View::default(), &["1", "0"], &storage(4, 4))).contains("storage `1` has no known class"));
}

#[test]
fn a_storage_listed_twice_is_refused() {
    let twice = [storage(4, 4), storage(4, 4)].concat();
    assert!(refused(stream(&View::default(), &["0", "0"], &twice)).contains("is there twice"));
}

#[test]
fn a_storage_of_two_element_sizes_is_refused() {
    let views = [View::default().pickled(), View { class: "DoubleStorage", count: 2, ..View::default() }.pickled()];
    let message = refused(legacy(&list(&views), &["0"], &storage(4, 4)));
    assert!(message.contains("elements of two sizes"), "{message}");
}

#[test]
fn a_long_storage_key_named_by_many_views_is_compared_once() {
    let start = [text(&"k".repeat(1 << 20)), b"q\x000".to_vec(), global("torch", "FloatStorage"), b"q\x010".to_vec()];
    let views = [&b"("[..], &b"Nh\x01h\x00\x87Q".repeat(100_000), b"l"].concat();
    read(legacy(&[start.concat(), views].concat(), &[], b"")).unwrap();
}

#[test]
fn a_big_endian_stream_is_refused() {
    let little = stream(&View::default(), &["0"], &storage(4, 4));
    let at = little.windows(13).position(|window| window == b"little_endian").unwrap() + 13;
    assert_eq!(little[at], 0x88);
    let big = [&little[..at], b"\x89", &little[at + 1..]].concat();
    assert!(refused(big).contains("big-endian"));
}

#[test]
fn a_stream_of_another_protocol_is_refused() {
    let bytes = [pickle(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"), pickle(&int(1002))].concat();
    assert!(refused(bytes).contains("not 1001"));
}

/// A tar with these members.
fn tar(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn words(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// An old tar of one storage of `count` floats and one tensor.
fn old(count: i64, floats: usize, tensor: &[i64]) -> Vec<u8> {
    let class = global("torch", "FloatStorage");
    let storage = pickle(&tuple(&[int(1), text("cpu"), class.clone()]));
    let storages = [pickle(&int(1)), storage, words(&[count]), vec![0; floats * 4], pickle(&list(&[]))].concat();
    let tensors = [pickle(&int(1)), pickle(&tuple(&[int(2), int(1), class])), words(tensor)].concat();
    let object = pickle(&dict(&[(text("w"), [text("2"), b"Q".to_vec()].concat())]));
    tar(&[("storages", storages), ("tensors", tensors), ("pickle", object)])
}

#[test]
fn the_tar_that_the_attacks_start_from_is_read() {
    assert_eq!(read(old(4, 4, &[1, 4, 1, 0])).unwrap().tensors()[0].shape, [4]);
}

#[test]
fn a_tar_whose_numbers_lie_is_refused() {
    for count in [5, i64::MAX, -1, i64::MAX / 4] {
        refused(old(count, 4, &[1, 4, 1, 0]));
    }
    for tensor in [
        &[1, 5, 1, 0][..],
        &[1, 4, 1, 1],
        &[1, 4, 2, 0],
        &[1, -4, 1, 0],
        &[1, 4, -1, 0],
        &[1, 4, 1, -1],
        &[33, 4, 1, 0],
        &[2, 4, 1, 0],
        &[-1, 4, 1, 0],
        &[2, i64::MAX, i64::MAX, 0, 0, 0],
        &[],
    ] {
        refused(old(4, 4, tensor));
    }
}

#[test]
fn a_tar_without_its_members_is_refused() {
    assert!(refused(tar(&[])).len() > 10);
    assert!(refused(tar(&[("photo.jpg", vec![0; 10])])).contains("no member `storages`: not a torch checkpoint"));
    let twice = tar(&[("storages", pickle(&int(0))), ("storages", pickle(&int(0)))]);
    assert!(refused(twice).contains("is there twice"));
}

#[test]
fn a_tar_that_promises_more_than_it_holds_is_refused() {
    let members = |storages: i64, tensors: i64| {
        let storages = [pickle(&int(storages)), pickle(&list(&[]))].concat();
        tar(&[("storages", storages), ("tensors", pickle(&int(tensors))), ("pickle", pickle(b"N"))])
    };
    assert!(read(members(0, 0)).unwrap().tensors().is_empty());
    for (storages, tensors) in [(i64::MAX, 0), (0, i64::MAX), (-1, 0), (0, -1), (1, 0), (0, 1)] {
        refused(members(storages, tensors));
    }
}

#[test]
fn an_unknown_name_anywhere_in_a_tar_is_refused() {
    let storages = [pickle(&int(0)), pickle(&list(&[]))].concat();
    let object = pickle(&super::make::call(global("os", "system"), &[text("true")]));
    let bytes = tar(&[("storages", storages), ("tensors", pickle(&int(0))), ("pickle", object)]);
    assert!(refused(bytes).contains("`os.system`"));
}
