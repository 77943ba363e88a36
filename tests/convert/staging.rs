//! A destination gets a whole model or stays as it was.

use std::ops::ControlFlow;
use std::path::Path;

use tec_zoo::convert::{ConvertError, convert};
use tec_zoo::destination::{Destination, DestinationError};
use tec_zoo::model::Canonical;

use super::{fixture, four_heads, run};
use crate::words::InFull;

const SOURCE: &str = "tec_checkpoint-299.pth";

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_existing_destination_is_replaced_only_when_asked_and_only_if_it_is_a_model() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("model");
    let overwriting = |out: &Path, name: &str| {
        let out = Destination::new(out).overwrite(true);
        convert(&fixture(name), out, &four_heads(), &mut |_| ControlFlow::Continue(()))
    };
    // An empty folder is as good as none.
    std::fs::create_dir(&out).unwrap();
    run(&fixture(SOURCE), &out, &four_heads()).unwrap();
    let error = run(&fixture(SOURCE), &out, &four_heads()).unwrap_err();
    assert!(error.in_full().contains("`overwrite` replaces it"), "{error}");
    // Replacing takes the old model's other files away with it.
    overwriting(&out, "mae_pretrain_vit_tiny.pth").unwrap();
    assert_eq!(names(&out), ["config.json", "model.safetensors"]);
    assert_eq!(Canonical::open(&out).unwrap().config().family, "mae");

    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let error = overwriting(&out, SOURCE).unwrap_err();
    assert!(
        matches!(&error, ConvertError::Destination(DestinationError::Foreign { name, .. }) if name == "notes.txt"),
        "{error}"
    );
    assert_eq!(names(&out), ["config.json", "model.safetensors", "notes.txt"]);
    let file = temp.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let error = overwriting(&file, SOURCE).unwrap_err().to_string();
    assert!(error.contains("is a file, and a directory is to be written"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert_eq!(names(temp.path()), ["file", "model"]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    let error = convert(&fixture(SOURCE), &temp.path().join("model"), &four_heads(), &mut |progress| {
        told.push(progress);
        if told.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap_err();
    assert!(matches!(error, ConvertError::Interrupted), "{error}");
    assert_eq!(told.len(), 3, "nothing is written after the interruption");
    assert!(told[0].done > 0 && told[1].done > told[0].done && told[2].done <= told[2].total);
    assert_eq!(names(temp.path()), [""; 0]);
}

#[test]
fn progress_ends_at_the_total() {
    let temp = tempfile::tempdir().unwrap();
    let mut last = None;
    let made = convert(&fixture(SOURCE), &temp.path().join("model"), &four_heads(), &mut |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    let last = last.unwrap();
    assert_eq!((last.done, last.total), (made.bytes, made.bytes));
}

#[test]
fn a_missing_parent_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let error = run(&fixture(SOURCE), &temp.path().join("none/model"), &four_heads()).unwrap_err();
    assert!(matches!(error, ConvertError::Destination(DestinationError::NoFolder { .. })), "{error}");
    assert_eq!(names(temp.path()), [""; 0]);
}

/// The kernel's own files refuse new neighbours even to root, for whom a folder's mode is no obstacle.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_target_is_an_error() {
    let error = run(&fixture(SOURCE), Path::new("/proc/tec-zoo-model"), &four_heads()).unwrap_err();
    assert!(matches!(error, ConvertError::Destination(DestinationError::Write { .. })), "{error}");
}

#[cfg(unix)]
#[test]
fn files_have_the_permissions_of_ordinary_new_files() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("model");
    let made = run(&fixture(SOURCE), &out, &four_heads()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    std::fs::write(temp.path().join("plain"), "").unwrap();
    std::fs::create_dir(temp.path().join("folder")).unwrap();
    assert_eq!(mode(&out), mode(&temp.path().join("folder")));
    for (file, _) in made.files {
        assert_eq!(mode(&out.join(file.name())), mode(&temp.path().join("plain")), "{}", file.name());
    }
}

/// A limit on file size stands in for a full disk: the write fails half-way, with the system's own error. The test runs
/// itself again under the limit, which has to be set before a process starts.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_leaves_nothing_behind() {
    const DIR: &str = "TEC_ZOO_TEST_FULL_DISK";
    if let Some(dir) = std::env::var_os(DIR) {
        let out = Path::new(&dir).join("model");
        let error = run(&fixture(SOURCE), &out, &four_heads()).unwrap_err();
        assert!(matches!(&error, ConvertError::Io { action: "write", .. }), "{error}");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("sh")
        // In blocks of 512 bytes: less than model.safetensors. The signal that comes with the limit is ignored.
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact convert::staging::a_disk_that_fills_up_leaves_nothing_behind"])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, temp.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the child wrote past its limit, or failed otherwise");
    assert_eq!(names(temp.path()), [""; 0]);
}
