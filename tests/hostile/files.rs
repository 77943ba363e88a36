//! Things in the file system that are no checkpoint.

use std::fs;
use std::path::Path;

use tec_zoo::checkpoint::Checkpoint;

use super::refused;
use crate::words::InFull;

fn message(path: &Path) -> String {
    let message = Checkpoint::open(path).unwrap_err().in_full();
    assert!(message.contains(&*path.file_name().unwrap().to_string_lossy()), "{message}");
    message
}

#[test]
fn an_empty_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    fs::write(&path, b"").unwrap();
    assert!(message(&path).contains("is empty"));
    assert!(Checkpoint::from_bytes("model.pth", b"".into()).unwrap_err().in_full().contains("`model.pth` is empty"));
}

#[test]
fn a_folder_without_a_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(folder.path()).contains("is a folder without a checkpoint"));
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    assert!(message(Path::new("/nowhere/model.pth")).contains("cannot open"));
}

#[cfg(unix)]
#[test]
fn a_pipe_and_a_device_are_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("model.pth");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&pipe, Path::new("/dev/zero")] {
        assert!(message(path).contains("is not a regular file"));
    }
}

#[test]
fn what_is_plainly_something_else_is_called_by_its_name() {
    for (bytes, says) in [
        (&b"a text file\n"[..], "starts with `a text file\\n`"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>403</html>", "a web page"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", "a pickle that torch.save did not write"),
        (b"\x1b[2J\x07", "\\x1b[2J\\x07"),
        (b"x", "starts with `x`"),
    ] {
        let message = refused(bytes.to_vec());
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn an_index_that_does_not_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, says) in [
        ("", "is empty"),
        ("nothing", "index: "),
        ("{}", "weight_map"),
        (r#"{"weight_map": {}}"#, "it names no tensors"),
        (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "is not a file name in the same folder"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "is not a file name in the same folder"),
        (r#"{"weight_map": {"a": "b\\c"}}"#, "is not a file name in the same folder"),
        (r#"{"weight_map": {"a": ".."}}"#, "is not a file name in the same folder"),
        (r#"{"weight_map": {"a": ""}}"#, "is not a file name in the same folder"),
    ] {
        fs::write(&index, text).unwrap();
        let message = message(&index);
        assert!(message.contains(says), "{text}: {message}");
    }
    // Shards that are missing, or the index itself, are named.
    for shard in ["missing.safetensors", "model.safetensors.index.json"] {
        fs::write(&index, format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#)).unwrap();
        let message = Checkpoint::open(&index).unwrap_err().in_full();
        assert!(message.contains(shard), "{message}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/containers/dtypes.safetensors");
    for shard in ["one", "two"] {
        fs::copy(&from, folder.path().join(shard)).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"float32": "one", "float16": "two"}}"#).unwrap();
    assert!(message(&index).contains("it is there twice"));
}
