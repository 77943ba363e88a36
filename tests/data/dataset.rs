//! Where training images are found, and what is said when they are not.

use std::fs;
use std::path::Path;

use tec_zoo::data::{DataError, Dataset};

use crate::words::InFull;

/// Names and contents of all samples.
pub(super) fn contents(dataset: &Dataset) -> Vec<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    (0..dataset.len()).map(|at| (dataset.read(at, &mut bytes).unwrap(), bytes.clone())).collect()
}

fn names(dataset: &Dataset, root: &Path) -> Vec<String> {
    let root = format!("{}/", root.display());
    contents(dataset).into_iter().map(|(name, _)| name.replace(&root, "")).collect()
}

pub(super) fn touch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
}

/// A tar of these members.
pub(super) fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn message(path: &Path) -> String {
    Dataset::open(path).unwrap_err().in_full()
}

#[test]
fn a_folder_gives_its_images_sorted_however_deep_and_however_named() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = ["a b/ü 1.JPEG", "b/.hidden.png", "b/c/d/e.webp", "b/x.jpg/inside.Jpg", "z.png", "zz.TIFF"];
    for name in wanted.iter().chain(&["notes.txt", "b/._x.jpg", "b/jpg", "README"]) {
        touch(&dir.path().join(name));
    }
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(names(&dataset, dir.path()), wanted);
    assert_eq!(contents(&dataset)[4].1, b"z.png");
}

#[cfg(unix)]
#[test]
fn links_are_followed_once_and_loops_end() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    touch(&dir.path().join("a/1.jpg"));
    touch(&elsewhere.path().join("2.jpg"));
    symlink(dir.path(), dir.path().join("a/up")).unwrap();
    symlink("down", dir.path().join("down")).unwrap();
    symlink(elsewhere.path(), dir.path().join("b")).unwrap();
    symlink(elsewhere.path(), dir.path().join("c")).unwrap();
    symlink(dir.path().join("a/1.jpg"), dir.path().join("d.jpg")).unwrap();
    symlink("nowhere", dir.path().join("e.jpg")).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.len(), 4);
    let error = dataset.read(3, &mut Vec::new()).unwrap_err().in_full();
    assert!(error.contains("e.jpg") && error.contains("no longer there"), "{error}");
}

#[cfg(unix)]
#[test]
fn names_that_are_no_text_are_read_and_pipes_are_not() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe.jpg"));
    fs::write(&odd, b"odd").unwrap();
    let pipe = dir.path().join("pipe.jpg");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let dataset = Dataset::open(dir.path()).unwrap();
    let mut bytes = Vec::new();
    let error = dataset.read(0, &mut bytes).unwrap_err().in_full();
    assert!(error.contains("no ordinary file"), "{error}");
    dataset.read(1, &mut bytes).unwrap();
    assert_eq!(bytes, b"odd");
}

#[test]
fn a_list_names_files_relative_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join("x/1.jpg"));
    touch(&dir.path().join("lists/2.png"));
    let absolute = dir.path().join("x/1.jpg");
    let list = dir.path().join("lists/train.txt");
    fs::write(&list, format!("# comment\n2.png\n\n../x/1.jpg\r\n{}\n2.png\n", absolute.display())).unwrap();
    let read: Vec<_> = contents(&Dataset::open(&list).unwrap()).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(read, [&b"2.png"[..], b"1.jpg", b"1.jpg", b"2.png"]);
}

#[test]
fn shards_are_addressed_member_by_member() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/long.jpg", "d".repeat(150));
    let first: &[(&str, &[u8])] = &[
        ("n01/0.jpg", b"zero"),
        ("n01/0.cls", b"7"),
        ("n01/0.seg.png", b"no image to train on"),
        ("n02/1.JPEG", &[1; 1000]),
        ("n02/1.json", b"{}"),
    ];
    fs::write(dir.path().join("s-000.tar"), tar_of(first)).unwrap();
    fs::write(dir.path().join("s-001.tar"), tar_of(&[(&long, b"long"), ("._x.jpg", b"mac"), ("2.webp", b"")])).unwrap();
    let whole = Dataset::open(dir.path()).unwrap();
    let found = contents(&whole);
    let bytes: Vec<&[u8]> = found.iter().map(|(_, bytes)| &bytes[..]).collect();
    assert_eq!(bytes, [&b"zero"[..], &[1; 1000], b"long", b""]);
    assert!(found[1].0.ends_with("s-000.tar: n02/1.JPEG"), "{}", found[1].0);
    assert_eq!(whole.passed_over(), 1);

    let pattern = Dataset::open(&dir.path().join("s-{000..001}.tar")).unwrap();
    assert_eq!(contents(&pattern), found);
    let one = Dataset::open(&dir.path().join("s-{001,000}.tar")).unwrap();
    assert_eq!(contents(&one)[0].1, b"long");
    assert_eq!(Dataset::open(&dir.path().join("s-001.tar")).unwrap().len(), 2);
}

#[test]
fn an_archive_written_by_python_is_read() {
    // Modification times with fractions put a pax header before every member.
    let mut builder = tar::Builder::new(Vec::new());
    for i in 0..3_u8 {
        builder.append_pax_extensions([("mtime", &b"1700000000.5"[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        builder.append_data(&mut header, format!("{i}.jpg"), &[i][..]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let read: Vec<_> = contents(&Dataset::open(&path).unwrap()).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(read, [[0], [1], [2]]);
}

#[test]
fn what_is_nothing_to_train_on_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(message(&at("missing")).contains("cannot read"));
    fs::create_dir(at("empty")).unwrap();
    assert!(message(&at("empty")).contains("neither images"), "{}", message(&at("empty")));
    fs::write(at("list.txt"), "# nothing\n").unwrap();
    assert!(message(&at("list.txt")).contains("lists no images"));
    fs::write(at("binary"), [0xff; 64]).unwrap();
    assert!(message(&at("binary")).contains("binary"));
    touch(&at("phone/1.heic"));
    touch(&at("phone/2.HEIC"));
    touch(&at("phone/notes.txt"));
    let phone = message(&at("phone"));
    assert!(phone.contains("holds neither images") && phone.contains("2 files are not read: 2 heic"), "{phone}");
    fs::write(at("labels.tar"), tar_of(&[("0.cls", b"1"), ("0.seg.png", b"x")])).unwrap();
    assert!(message(&at("labels.tar")).contains("1 members have another dot"), "{}", message(&at("labels.tar")));
    fs::create_dir(at("both")).unwrap();
    fs::write(at("both/a.tar"), tar_of(&[("0.jpg", b"1")])).unwrap();
    touch(&at("both/b.jpg"));
    assert!(message(&at("both")).contains("1 image and 1 .tar shard"));
    assert!(message(&at("s-{3..1}.tar")).contains("backwards"));
    assert!(message(&at("s-{0..99999999}.tar")).contains("more than"));
    assert!(message(&at("s-{0..1}.tar")).contains("s-0.tar"));
}

#[test]
fn a_file_that_is_gone_is_one_image_and_a_folder_that_is_gone_is_all() {
    let dir = super::folder(4);
    let root = dir.path().join("data");
    for class in 0..3 {
        let name = format!("class{class}");
        fs::create_dir_all(&root).unwrap();
        fs::rename(dir.path().join(&name), root.join(&name)).unwrap();
    }
    let dataset = Dataset::open(&root).unwrap();
    let mut bytes = Vec::new();
    fs::remove_file(root.join("class0/000.jpg")).unwrap();
    assert!(matches!(dataset.read(0, &mut bytes), Err(DataError::Image { .. })));
    dataset.read(1, &mut bytes).unwrap();
    fs::rename(&root, dir.path().join("moved")).unwrap();
    assert!(matches!(dataset.read(1, &mut bytes), Err(DataError::Vanished { .. })));
    // A mount point whose file system is gone.
    fs::create_dir(&root).unwrap();
    assert!(matches!(dataset.read(1, &mut bytes), Err(DataError::Vanished { .. })));
}
