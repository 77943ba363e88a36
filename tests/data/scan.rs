//! Looking for images: what is told, how it is stopped, what is passed over, and that it is not done twice.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use tec_zoo::data::{DataError, Dataset, ScanEvent};

use super::dataset::{contents, tar_of, touch};

/// What is told of `path`: files that are not read, damaged shards.
fn told(path: &Path) -> (Dataset, Vec<String>) {
    let mut told = Vec::new();
    let dataset = Dataset::scan(path, &mut |event| {
        match event {
            ScanEvent::Unread(unread) => told.push(unread.to_string()),
            ScanEvent::Damaged(shard) => {
                told.push(format!("{}: {}", shard.path.file_name().unwrap().display(), shard.reason));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (dataset.unwrap(), told)
}

#[test]
fn files_that_look_like_images_and_are_not_read_are_counted_by_format() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..21 {
        touch(&dir.path().join(format!("phone/{i}.HEIC")));
    }
    for i in 0..20 {
        touch(&dir.path().join(format!("{i}.avif")));
    }
    for name in ["1.bmp", "2.tif", "3.tiff", "4.gif", "5.ppm", "6.pgm", "7.pbm", "8.pnm", "9.jfif", "labels.csv"] {
        touch(&dir.path().join(name));
    }
    let (dataset, told) = told(dir.path());
    assert_eq!(dataset.len(), 9);
    assert_eq!(told, ["41 files are not read: 21 heic, 20 avif"]);
}

#[test]
fn members_that_look_like_images_and_are_not_read_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    fs::write(&path, tar_of(&[("0.heic", b"0"), ("1.tif", b"1"), ("1.json", b"{}"), ("2.bmp", b"2")])).unwrap();
    let (dataset, told) = told(&path);
    assert_eq!(contents(&dataset).len(), 2);
    assert_eq!(told, ["1 file is not read: 1 heic"]);
}

#[test]
fn a_truncated_shard_is_named_and_what_stands_before_the_cut_is_used() {
    let whole = tar_of(&[("0.jpg", &[7; 600]), ("1.jpg", &[8; 600])]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.tar");
    for (len, expected) in [
        (512 + 1024 + 512 + 599, "it is truncated: `1.jpg` should end at byte 2648 of 2647"),
        (512 + 1024 + 100, "it is truncated: it ends at byte 1636, within what begins at byte 1536"),
    ] {
        fs::write(&path, &whole[..len]).unwrap();
        let (dataset, told) = told(&path);
        assert_eq!(told, [format!("cut.tar: {expected}")]);
        assert_eq!(contents(&dataset)[0].1, [7; 600]);
        assert_eq!(dataset.len(), 1);
        assert_eq!((dataset.damaged().len(), dataset.damaged()[0].images), (1, 1));
    }
    // Nothing is left of this one.
    fs::write(&path, &whole[..700]).unwrap();
    let message = Dataset::open(&path).unwrap_err().to_string();
    assert!(message.contains("cut.tar`: it is truncated: `0.jpg` should end"), "{message}");
    // The padding of the last member and the end marker are nobody's pixels.
    fs::write(&path, &whole[..512 + 1024 + 512 + 600]).unwrap();
    let (dataset, told) = told(&path);
    assert_eq!((dataset.len(), told.len()), (2, 0));
    fs::write(&path, &whole).unwrap();
    let dataset = Dataset::open(&path).unwrap();
    fs::write(&path, &whole[..2000]).unwrap();
    let error = dataset.read(1, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("changed since"), "{error}");
}

/// Python's tarfile puts an extended header before every member: the cut may fall between the two.
#[test]
fn a_shard_cut_behind_an_extended_header_is_called_truncated() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut starts = Vec::new();
    for i in 0..3_u8 {
        starts.push(builder.get_ref().len());
        builder.append_pax_extensions([("mtime", &b"1700000000.5"[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        builder.append_data(&mut header, format!("{i}.jpg"), &[i][..]).unwrap();
    }
    let whole = builder.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.tar");
    for behind in [1024, 1100, 600] {
        fs::write(&path, &whole[..starts[2] + behind]).unwrap();
        let (dataset, told) = told(&path);
        assert_eq!(dataset.len(), 2, "{behind}");
        assert_eq!(told.len(), 1, "{behind}");
        assert!(told[0].starts_with("cut.tar: it is truncated: it ends at byte"), "{told:?}");
    }
}

#[test]
fn a_shard_with_a_broken_header_is_named_and_the_others_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut garbage = tar_of(&[("0.jpg", b"zero"), ("1.jpg", b"one"), ("2.jpg", b"two")]);
    garbage[1024..1400].fill(0xa5);
    fs::write(dir.path().join("a.tar"), garbage).unwrap();
    fs::write(dir.path().join("b.tar"), [0x55; 3000]).unwrap();
    fs::write(dir.path().join("c.tar"), tar_of(&[("3.jpg", b"three")])).unwrap();
    let (dataset, told) = told(dir.path());
    let read: Vec<_> = contents(&dataset).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(read, [&b"zero"[..], b"three"]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("a.tar: what begins at byte 1024 of"), "{told:?}");
    assert!(told[1].starts_with("b.tar: what begins at byte 0 of 3000 is no header"), "{told:?}");
}

#[test]
fn a_scan_tells_how_far_it_is_and_ends_when_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    for folder in 0..40 {
        fs::create_dir(dir.path().join(folder.to_string())).unwrap();
        for i in 0..400 {
            fs::write(dir.path().join(format!("{folder}/{i}.jpg")), b"").unwrap();
        }
    }
    let list = dir.path().join("list.txt");
    let lines: Vec<String> = (0..40).flat_map(|folder| (0..400).map(move |i| format!("{folder}/{i}.jpg"))).collect();
    fs::write(&list, lines.join("\n")).unwrap();
    let shard = dir.path().join("x.tar");
    fs::write(&shard, tar_of(&[("0.jpg", b"zero")])).unwrap();
    for (path, expected) in [(dir.path(), "Walking"), (&list, "Reading"), (&shard, "Reading")] {
        let mut told = Vec::new();
        let asked = Instant::now();
        let scanned = Dataset::scan(path, &mut |event| {
            told.push(format!("{event:?}"));
            ControlFlow::Break(())
        });
        assert!(matches!(scanned, Err(DataError::Interrupted)), "{scanned:?}");
        assert!(asked.elapsed() < Duration::from_secs(1));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(expected), "{told:?}");
    }
    let digest = Dataset::open(&list).unwrap().digest(&mut |event| {
        assert!(matches!(event, ScanEvent::Digesting { of: 256, .. }), "{event:?}");
        ControlFlow::Break(())
    });
    assert!(matches!(digest, Err(DataError::Interrupted)));
}

/// A folder that changed a moment ago may change once more within the same tick of its clock.
const SETTLED: Duration = Duration::from_millis(3_200);

#[test]
fn a_kept_scan_is_used_while_nothing_changed_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let (data, kept) = (dir.path().join("data"), dir.path().join("scan.json"));
    for i in 0..30 {
        touch(&data.join(format!("{}/{i}.jpg", i % 3)));
    }
    touch(&data.join("0/x.heic"));
    let again = |told: &mut Vec<String>| {
        let dataset = Dataset::scan_or_kept(&data, &kept, &mut |event| {
            match event {
                ScanEvent::Walking { .. } => told.push("walking".into()),
                ScanEvent::Unread(unread) => told.push(unread.to_string()),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        dataset.unwrap()
    };
    let fresh = Dataset::open(&data).unwrap();
    let digest = fresh.digest(&mut |_| ControlFlow::Continue(())).unwrap();

    // Made a moment ago: not believed, and looked at again.
    fresh.keep(&data, &kept).unwrap();
    assert!(!again(&mut Vec::new()).is_kept());
    std::thread::sleep(SETTLED);
    let mut told = Vec::new();
    let second = again(&mut told);
    assert!(!second.is_kept() && told.contains(&"walking".to_owned()), "{told:?}");
    second.keep(&data, &kept).unwrap();

    told.clear();
    let third = again(&mut told);
    assert!(third.is_kept());
    assert_eq!(told, ["1 file is not read: 1 heic"], "no folder is read again; what is passed over is told each time");
    assert_eq!(third.len(), 30);
    assert_eq!(contents(&third), contents(&second));
    assert_eq!(third.digest(&mut |_| ControlFlow::Continue(())).unwrap(), digest);

    // Of another folder, torn, or absurd: as good as none.
    let whole = fs::read(&kept).unwrap();
    for bad in [&whole[..whole.len() - 1], b"tec-zoo scan 1\n", b"", b"nonsense"] {
        fs::write(&kept, bad).unwrap();
        assert!(!again(&mut Vec::new()).is_kept());
    }
    fs::write(&kept, &whole).unwrap();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    touch(&other.join("1.jpg"));
    let moved = Dataset::scan_or_kept(&other, &kept, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(!moved.is_kept() && moved.len() == 1);

    // Every kind of change is seen.
    let changes: [(&str, &dyn Fn()); 4] = [
        ("edited", &|| fs::write(data.join("1/1.jpg"), b"longer than it was").unwrap()),
        ("added", &|| touch(&data.join("2/new.jpg"))),
        ("renamed", &|| fs::rename(data.join("2/new.jpg"), data.join("2/old.jpg")).unwrap()),
        ("removed", &|| fs::remove_file(data.join("2/old.jpg")).unwrap()),
    ];
    for (what, change) in changes {
        fs::write(&kept, &whole).unwrap();
        change();
        assert!(!again(&mut Vec::new()).is_kept(), "{what}");
    }
}

#[test]
fn a_kept_scan_of_shards_and_of_a_list_is_used_too() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("shards");
    fs::create_dir(&shards).unwrap();
    fs::write(shards.join("0.tar"), tar_of(&[("0.jpg", b"zero"), ("1.jpg", b"one")])).unwrap();
    fs::write(shards.join("1.tar"), &tar_of(&[("2.jpg", b"two"), ("3.jpg", b"three")])[..1100]).unwrap();
    let list = dir.path().join("list.txt");
    touch(&dir.path().join("a.jpg"));
    fs::write(&list, "a.jpg\n").unwrap();
    std::thread::sleep(SETTLED);
    let go_on = &mut |_: ScanEvent<'_>| ControlFlow::Continue(());
    for (data, kept) in
        [(shards.clone(), "shards.json"), (shards.join("{0..1}.tar"), "pattern.json"), (list, "list.json")]
    {
        let kept = dir.path().join(kept);
        let fresh = Dataset::open(&data).unwrap();
        fresh.keep(&data, &kept).unwrap();
        let second = Dataset::scan_or_kept(&data, &kept, go_on).unwrap();
        assert!(second.is_kept(), "{}", data.display());
        assert_eq!(contents(&second), contents(&fresh));
        assert_eq!(second.damaged(), fresh.damaged());
        assert_eq!(second.digest(go_on).unwrap(), fresh.digest(go_on).unwrap());
    }
    fs::write(shards.join("0.tar"), tar_of(&[("0.jpg", b"zero"), ("1.jpg", b"two")])).unwrap();
    let changed = Dataset::scan_or_kept(&shards, &dir.path().join("shards.json"), go_on).unwrap();
    assert!(!changed.is_kept());
}

#[cfg(unix)]
#[test]
fn a_kept_scan_keeps_names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.jpg")), b"odd").unwrap();
    std::thread::sleep(SETTLED);
    let kept = dir.path().join("scan.json");
    Dataset::open(&data).unwrap().keep(&data, &kept).unwrap();
    let again = Dataset::scan_or_kept(&data, &kept, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(again.is_kept());
    assert_eq!(contents(&again)[0].1, b"odd");
}
