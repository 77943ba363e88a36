//! Archives that torch never writes.

use super::make::{Entry, View, dict, pickle, text, torch_zip, zip};
use super::{read, refused};

fn honest() -> Vec<Entry> {
    let pickled = pickle(&dict(&[(text("w"), View::default().pickled())]));
    vec![Entry::new("archive/data.pkl", &pickled), Entry::new("archive/data/0", &[0; 16])]
}

/// The honest archive with its second entry changed.
fn changed(change: impl FnOnce(&mut Entry)) -> Vec<u8> {
    let mut entries = honest();
    change(&mut entries[1]);
    zip(&entries)
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn the_archive_that_the_attacks_start_from_is_read() {
    assert_eq!(read(zip(&honest())).unwrap().tensors().len(), 1);
}

#[test]
fn an_entry_that_is_there_twice_is_refused() {
    let mut entries = honest();
    entries.push(entries[1].clone());
    assert!(refused(zip(&entries)).contains("entry `archive/data/0` is there twice"));
}

#[test]
fn a_second_pickle_is_refused() {
    let mut entries = honest();
    entries.push(Entry::new("other/data.pkl", &entries[0].data.clone()));
    assert!(refused(zip(&entries)).contains("more than one data.pkl"));
}

#[test]
fn a_name_that_leaves_the_archive_is_refused() {
    for name in ["../../etc/passwd", "archive/../../x", "/etc/passwd", "C:/x", "archive\\..\\x", "archive/\0"] {
        let message = refused(changed(|entry| entry.name = name.to_owned()));
        assert!(message.contains("leaves the archive"), "{name}: {message}");
    }
}

#[test]
fn a_compressed_entry_is_refused_unopened() {
    let message = refused(changed(|entry| entry.method = 8));
    assert!(message.contains("compressed (method 8)") && message.contains("hint: "), "{message}");
}

#[test]
fn a_compression_bomb_is_refused_unopened() {
    let message = refused(changed(|entry| entry.size = Some(0xffff_fffe)));
    assert!(message.contains("is stored, yet 4294967294 bytes take 16"), "{message}");
}

#[test]
fn an_encrypted_entry_is_refused() {
    assert!(refused(changed(|entry| entry.flags = 1)).contains("is encrypted"));
}

#[test]
fn entries_that_overlap_are_refused() {
    // A local header inside another entry's data.
    let within = [&b"PK\x03\x04"[..], &[0; 22], &[14, 0, 0, 0], b"archive/data/1"].concat();
    let mut entries = honest();
    let before = 30 + entries[0].name.len() + entries[0].data.len() + 30 + entries[1].name.len();
    entries[1].data = within;
    let mut other = Entry::new("archive/data/1", b"");
    other.offset = Some(u32::try_from(before).unwrap());
    entries.push(other);
    assert!(refused(zip(&entries)).contains("its entries overlap"));
}

#[test]
fn an_entry_beyond_the_file_is_refused() {
    for change in [
        |entry: &mut Entry| entry.offset = Some(0xffff_fff0),
        |entry: &mut Entry| (entry.size, entry.packed) = (Some(0x1000_0000), Some(0x1000_0000)),
        |entry: &mut Entry| entry.offset = Some(7),
    ] {
        assert!(refused(changed(change)).contains("lies outside the file"));
    }
}

#[test]
fn an_entry_with_two_names_is_refused() {
    let message = refused(changed(|entry| entry.local_name = Some("archive/data/7")));
    assert!(message.contains("another name in its own header"), "{message}");
}

#[test]
fn a_truncated_directory_is_refused() {
    let whole = zip(&honest());
    let end = whole.len() - 22;
    assert!(refused(whole[..whole.len() - 3].to_vec()).contains("end-of-directory record is truncated"));
    assert!(refused(whole[..end].to_vec()).contains("no end-of-directory record"));
    let cut = [&whole[..end - 20], &whole[end..]].concat();
    assert!(refused(cut).contains("lies outside the file"));
}

#[test]
fn a_directory_that_lies_about_its_size_is_refused() {
    let whole = zip(&honest());
    let end = whole.len() - 22;
    for (at, value) in [(12, 0x7fff_ffff), (16, 0x7fff_ffff), (12, 46)] {
        let mut bytes = whole.clone();
        put(&mut bytes, end + at, value);
        refused(bytes);
    }
    let mut bytes = whole.clone();
    bytes[end + 10..end + 12].copy_from_slice(&60_000u16.to_le_bytes());
    assert!(refused(bytes).contains("cannot hold 60000 entries"));
    let mut bytes = whole;
    bytes[end + 10] = 1;
    assert!(refused(bytes).contains("says it ends after"));
}

#[test]
fn zip64_records_that_lie_are_refused() {
    let whole = zip(&honest());
    let end = whole.len() - 22;
    let mut saturated = whole[end..].to_vec();
    put(&mut saturated, 16, 0xffff_ffff);
    assert!(refused([&whole[..end], &saturated].concat()).contains("zip64 record is missing"));

    let record = |count: u64, size: u64, start: u64| {
        let head = [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 12], &count.to_le_bytes()].concat();
        [head, count.to_le_bytes().to_vec(), size.to_le_bytes().to_vec(), start.to_le_bytes().to_vec()].concat()
    };
    let with = |record: Vec<u8>, at: u64| {
        let locator = [&b"PK\x06\x07"[..], &[0; 4], &at.to_le_bytes(), &[1, 0, 0, 0]].concat();
        [&whole[..end], &record, &locator, &saturated].concat()
    };
    let at = end as u64;
    let start = u64::from(u32::from_le_bytes(whole[end + 16..end + 20].try_into().unwrap()));
    let size = at - start;
    assert_eq!(read(with(record(2, size, start), at)).unwrap().tensors().len(), 1);
    for (record, at) in [
        (record(u64::MAX, size, start), at),
        (record(2, u64::MAX, start), at),
        (record(2, size, u64::MAX), at),
        (record(2, u64::MAX, 1), at),
        (record(2, size, start), u64::MAX),
        (record(2, size, start), at + 1),
    ] {
        refused(with(record, at));
    }

    let lacking = refused(changed(|entry| entry.size = Some(0xffff_ffff)));
    assert!(lacking.contains("lacks its zip64 sizes"), "{lacking}");
    let extra = [&[1, 0, 8, 0][..], &u64::MAX.to_le_bytes()].concat();
    refused(changed(|entry| (entry.size, entry.extra) = (Some(0xffff_ffff), extra)));
}

#[test]
fn a_pickle_that_does_not_match_its_checksum_is_refused() {
    let mut entries = honest();
    entries[0].checksum = 0xdead_beef;
    assert!(refused(zip(&entries)).contains("entry `archive/data.pkl` is damaged: its checksum differs"));
}

#[test]
fn an_archive_without_a_pickle_is_refused() {
    assert!(refused(zip(&[Entry::new("readme.txt", b"")])).contains("no data.pkl"));
    assert!(refused(zip(&[])).contains("no data.pkl"));
}

#[test]
fn torchscript_is_told_from_a_checkpoint() {
    let mut entries = honest();
    entries.push(Entry::new("archive/constants.pkl", b"\x80\x02)."));
    entries.push(Entry::new("archive/code/__torch__.py", b"class Module: ..."));
    assert!(refused(zip(&entries)).contains("TorchScript archive"));
}

#[test]
fn big_endian_numbers_are_refused() {
    let mut entries = honest();
    entries.push(Entry::new("archive/byteorder", b"big"));
    assert!(refused(zip(&entries)).contains("big-endian"));
    entries[2].data = b"middle".to_vec();
    assert!(refused(zip(&entries)).contains("byte order"));
}

#[test]
fn an_ugly_entry_name_leaves_the_terminal_alone() {
    let ugly = format!("archive/\u{1b}[2J{}", "x".repeat(60_000));
    refused(changed(|entry| (entry.name, entry.method) = (ugly, 9)));
}

#[test]
fn a_storage_key_that_names_a_path_finds_nothing() {
    let view = View { key: "../data.pkl", ..View::default() };
    assert!(refused(torch_zip(&pickle(&view.pickled()))).contains("storage `../data.pkl` is not in the file"));
}
