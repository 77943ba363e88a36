//! Reading every container: bit for bit what torch reads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tec_zoo::checkpoint::{Checkpoint, CheckpointError, ContainerKind};

use crate::words::InFull;

/// A tensor as torch saw it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Seen {
    path: Vec<String>,
    dtype: String,
    shape: Vec<usize>,
    sha256: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Summary {
    tensors: usize,
    sha256: String,
}

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder)
}

fn expected<T: for<'de> Deserialize<'de>>(name: &str) -> BTreeMap<String, T> {
    serde_json::from_str(&fs::read_to_string(fixtures("containers").join(name)).unwrap()).unwrap()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seen(checkpoint: &Checkpoint) -> Vec<Seen> {
    let see = |tensor: &tec_zoo::checkpoint::TensorEntry| Seen {
        path: tensor.path.clone(),
        dtype: tensor.dtype.to_string(),
        shape: tensor.shape.clone(),
        sha256: hash(&checkpoint.bytes(tensor).unwrap()),
    };
    checkpoint.tensors().iter().map(see).collect()
}

fn sorted(mut tensors: Vec<Seen>) -> Vec<Seen> {
    tensors.sort();
    tensors
}

#[test]
fn every_container_gives_the_tensors_that_torch_reads_from_it() {
    let all = expected::<Vec<Seen>>("expected.json");
    assert!(all.len() >= 20, "the list of fixtures is short: {}", all.len());
    for (name, tensors) in all {
        let checkpoint = Checkpoint::open(&fixtures("containers").join(&name)).unwrap();
        assert_eq!(sorted(seen(&checkpoint)), sorted(tensors), "{name}");
    }
}

#[test]
fn every_reference_checkpoint_gives_the_tensors_that_torch_reads_from_it() {
    for (name, summary) in expected::<Summary>("expected_reference.json") {
        let checkpoint = Checkpoint::open(&fixtures("reference").join(&name)).unwrap();
        let mut lines: Vec<String> = seen(&checkpoint)
            .iter()
            .map(|tensor| {
                let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
                let path = tensor.path.join("/");
                format!("{path}\t{}\t[{}]\t{}\n", tensor.dtype, shape.join(", "), tensor.sha256)
            })
            .collect();
        lines.sort();
        let found = Summary { tensors: lines.len(), sha256: hash(lines.concat().as_bytes()) };
        assert_eq!(found, summary, "{name}");
    }
}

#[test]
fn every_fixture_has_its_expected_tensors() {
    let expected = expected::<Vec<Seen>>("expected.json");
    for entry in fs::read_dir(fixtures("containers")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".pth") || name.ends_with(".safetensors") {
            assert!(expected.contains_key(&name), "{name}");
        }
    }
}

#[test]
fn containers_are_told_apart_by_their_bytes() {
    let kind = |name: &str| Checkpoint::open(&fixtures("containers").join(name)).unwrap().container();
    assert_eq!(kind("zip_protocol2.pth"), ContainerKind::TorchZip);
    assert_eq!(kind("legacy_protocol2.pth"), ContainerKind::TorchLegacy);
    assert_eq!(kind("legacy_protocol4.pth"), ContainerKind::TorchLegacy);
    assert_eq!(kind("old_tar.pth"), ContainerKind::TorchTar);
    assert_eq!(kind("dtypes.safetensors"), ContainerKind::Safetensors);
    assert_eq!(kind("sharded_bin/pytorch_model.bin.index.json"), ContainerKind::Sharded);
}

#[test]
fn a_folder_stands_for_the_checkpoint_in_it() {
    for name in ["sharded_bin", "sharded_safetensors"] {
        let checkpoint = Checkpoint::open(&fixtures("containers").join(name)).unwrap();
        assert_eq!(checkpoint.container(), ContainerKind::Sharded);
        assert_eq!(checkpoint.tensors().len(), 4);
        let mut read = 0;
        let mut count = |piece: &[u8]| {
            read += piece.len() as u64;
            Ok::<(), CheckpointError>(())
        };
        checkpoint.stream_files(&mut count).unwrap();
        let files = fs::read_dir(fixtures("containers").join(name)).unwrap().map(|file| file.unwrap());
        let shards = files.filter(|file| !file.file_name().to_str().unwrap().ends_with(".json"));
        assert_eq!(read, shards.map(|shard| shard.metadata().unwrap().len()).sum::<u64>());
    }
}

#[test]
fn bytes_in_memory_read_as_the_file_does() {
    for name in expected::<Vec<Seen>>("expected.json").keys().filter(|name| !name.contains('/')) {
        let path = fixtures("containers").join(name);
        let file = Checkpoint::open(&path).unwrap();
        let memory = Checkpoint::from_bytes(name, Cow::Owned(fs::read(&path).unwrap())).unwrap();
        assert_eq!(seen(&memory), seen(&file), "{name}");
        assert!(memory.tensors().iter().all(|tensor| memory.span(tensor).is_none()), "{name}");
    }
}

#[test]
fn a_span_of_the_file_holds_the_tensors_bytes() {
    let mut gathered = 0;
    for name in expected::<Vec<Seen>>("expected.json").keys() {
        let checkpoint = Checkpoint::open(&fixtures("containers").join(name)).unwrap();
        for tensor in checkpoint.tensors() {
            let bytes = checkpoint.bytes(tensor).unwrap();
            let Some(span) = checkpoint.span(tensor) else {
                assert!(matches!(bytes, Cow::Owned(_)), "{name}: {:?}", tensor.path);
                gathered += 1;
                continue;
            };
            let mut read = vec![0; usize::try_from(span.len).unwrap()];
            let mut file = span.file;
            file.seek(SeekFrom::Start(span.offset)).unwrap();
            file.read_exact(&mut read).unwrap();
            assert_eq!(read, &*bytes, "{name}: {:?}", tensor.path);
        }
    }
    // Transposed, sliced by columns, every other, permuted, expanded: in the zip and in two legacy files.
    assert!(gathered >= 15, "{gathered}");
}

#[test]
fn keys_are_those_directly_below_a_path_in_file_order() {
    let checkpoint = Checkpoint::open(&fixtures("containers").join("zip_protocol2.pth")).unwrap();
    assert_eq!(checkpoint.keys(&[]).unwrap(), ["model"]);
    let inner = ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "cls_token"];
    assert_eq!(checkpoint.keys(&["model"]).unwrap(), inner);
    assert_eq!(checkpoint.keys(&["state_dict"]), None);
    assert_eq!(checkpoint.keys(&["model", "cls_token"]), None);
}

#[test]
fn a_survey_lists_the_values_that_are_no_tensors() {
    for name in ["opaque.pth", "opaque_protocol5.pth"] {
        let survey = Checkpoint::survey(&fixtures("containers").join(name)).unwrap();
        let leaf = |path: &[&str]| {
            let found = survey.leaves.iter().find(|leaf| leaf.path == path);
            found.unwrap_or_else(|| panic!("{name} has no {path:?} in {:#?}", survey.leaves)).value.as_str()
        };
        assert_eq!(leaf(&["epoch"]), "299");
        assert_eq!(leaf(&["args"]), "argparse.Namespace");
        assert_eq!(leaf(&["args", "lr"]), "0.00015");
        assert_eq!(leaf(&["args", "model"]), "\"mae_vit_base_patch16\"");
        assert_eq!(leaf(&["args", "mask"]), "None");
        assert_eq!(leaf(&["best"]), "84.25");
        assert_eq!(leaf(&["losses"]), "3 items");
        assert_eq!(leaf(&["seen"]), "3 items");
        assert_eq!(leaf(&["negative"]), (-(1i64 << 40)).to_string());
        assert_eq!(leaf(&["big"]), "integer of 11 bytes");
        assert_eq!(leaf(&["raw"]), "2 bytes");
        assert_eq!(leaf(&["history"]), "numpy.ndarray");
        assert_eq!(leaf(&["device"]), "torch.device");
    }
}

#[test]
fn a_survey_lists_every_name_in_the_pickle() {
    let survey = Checkpoint::survey(&fixtures("containers").join("opaque.pth")).unwrap();
    assert_eq!(survey.protocol, Some(2));
    assert!(survey.globals.iter().all(|global| global.known), "{:#?}", survey.globals);
    for name in ["argparse.Namespace", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "torch.device"] {
        assert!(survey.globals.iter().any(|global| global.name == name), "{name}");
    }
}

#[test]
fn a_survey_tells_of_shared_memory() {
    let survey = Checkpoint::survey(&fixtures("containers").join("shared.pth")).unwrap();
    let told = "`student.weight` and `teacher.weight` start at the same byte: shared memory, listed twice";
    assert!(survey.warnings.iter().any(|warning| warning == told), "{:#?}", survey.warnings);
}

#[test]
fn errors_name_the_file_and_for_shards_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "one.safetensors"}}"#).unwrap();
    let message = |path: &Path| Checkpoint::open(path).unwrap_err().in_full();
    assert!(message(&index).contains("one.safetensors"), "{}", message(&index));

    fs::write(folder.path().join("one.safetensors"), b"nothing of the kind").unwrap();
    assert!(message(&index).contains("one.safetensors"), "{}", message(&index));

    fs::copy(fixtures("containers").join("dtypes.safetensors"), folder.path().join("one.safetensors")).unwrap();
    let error = Checkpoint::open(&index).unwrap_err();
    assert!(error.in_full().contains("model.safetensors.index.json"), "{error}");
    let CheckpointError::In { source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, CheckpointError::Index { .. }), "{source}");
}
