//! The digest of data: what changes it, and what does not.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use tec_zoo::data::{DataDigest, Dataset};

use super::dataset::{tar_of, touch};

fn digest(path: &Path) -> DataDigest {
    Dataset::open(path).unwrap().digest(&mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_digest_knows_renamed_replaced_edited_added_and_removed_images() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for i in 0..20 {
        touch(&data.join(format!("{}/{i:02}.jpg", i % 2)));
    }
    let was = digest(&data);
    assert_eq!((was.images, was.bytes), (20, 20 * 6));
    assert_eq!(digest(&data), was);
    assert_eq!(was.difference(&was), None);

    // The same images elsewhere, however the folder is named and whenever its files were touched.
    let moved = dir.path().join("moved");
    fs::rename(&data, &moved).unwrap();
    touch(&moved.join("0/00.jpg"));
    assert_eq!(digest(&moved), was);
    assert_eq!(digest(&moved).id(), was.id());
    fs::rename(&moved, &data).unwrap();

    let changes: [(&dyn Fn(), &str); 5] = [
        (&|| fs::rename(data.join("0/00.jpg"), data.join("0/zz.jpg")).unwrap(), "the names of images"),
        (&|| fs::rename(data.join("0/zz.jpg"), data.join("0/00.jpg")).unwrap(), ""),
        (&|| fs::write(data.join("1/01.jpg"), b"02.jpg").unwrap(), "the contents of images"),
        (&|| fs::write(data.join("1/01.jpg"), b"longer than it was").unwrap(), "the sizes of images"),
        (&|| fs::remove_file(data.join("1/01.jpg")).unwrap(), "the number of images"),
    ];
    for (change, expected) in changes {
        change();
        let is = digest(&data);
        assert_eq!(is.difference(&was).unwrap_or_default(), expected);
        assert_eq!(is.id() == was.id(), expected.is_empty());
    }
}

/// The definition is written down in runs and results: it must not change unnoticed.
#[test]
fn a_digest_is_the_one_that_was_written_down() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("b/2.jpg", &b"two"[..]), ("a.png", b"one"), ("b/10.webp", b"")] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let found = digest(dir.path());
    // sha256 of what the module's documentation says, by Python's hashlib.
    assert_eq!((found.version, found.images, found.bytes), (1, 3, 6));
    assert_eq!(found.names, "885d7806d605ae92d8187aa5dbc24668f976f90cb68070d53df015a1cf61c271");
    assert_eq!(found.sizes, "8493c6072c9bf92e758cb6326cbe2063ca39c05a77cc49b61e4a53a5ae5b494e");
}

#[test]
fn a_digest_of_a_list_is_of_its_order_and_of_shards_of_their_members() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        touch(&dir.path().join(format!("{i}.jpg")));
    }
    let lists = ["0.jpg\n1.jpg\n2.jpg\n", "# the same\n0.jpg\n1.jpg\n\n2.jpg", "1.jpg\n0.jpg\n2.jpg\n"];
    let digests = lists.map(|lines| {
        fs::write(dir.path().join("list.txt"), lines).unwrap();
        digest(&dir.path().join("list.txt"))
    });
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[2].difference(&digests[0]), Some("the names of images"));

    let shards = dir.path().join("shards");
    fs::create_dir(&shards).unwrap();
    fs::write(shards.join("0.tar"), tar_of(&[("0.jpg", b"zero"), ("1.jpg", b"one")])).unwrap();
    let was = digest(&shards);
    assert_eq!(digest(&shards.join("{0..0}.tar")), was);
    assert_eq!(digest(&shards.join("0.tar")), was);
    fs::write(shards.join("0.tar"), tar_of(&[("0.jpg", b"zero"), ("2.jpg", b"one")])).unwrap();
    assert_eq!(digest(&shards).difference(&was), Some("the names of images"));
    fs::write(shards.join("0.tar"), tar_of(&[("0.jpg", b"zero"), ("1.jpg", b"two")])).unwrap();
    assert_eq!(digest(&shards).difference(&was), Some("the contents of images"));
}

/// An unreadable image is part of the data, as one that cannot be read.
#[cfg(unix)]
#[test]
fn a_digest_of_data_with_broken_links_and_pipes_comes_to_an_end() {
    let dir = tempfile::tempdir().unwrap();
    touch(&dir.path().join("1.jpg"));
    std::os::unix::fs::symlink("nowhere", dir.path().join("2.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("3.jpg")).status().unwrap().success());
    let found = digest(dir.path());
    assert_eq!((found.images, found.bytes), (3, 5));
    assert_eq!(digest(dir.path()), found);
}
