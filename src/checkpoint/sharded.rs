//! Checkpoints in several files with an index, as transformers saves large ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CheckpointError;
use super::error::shown;
use super::source::Source;

/// An index is text about names; a gigabyte of it is an attack.
const MAX_INDEX: usize = 64 << 20;

/// Names a folder's checkpoint may have, best first.
const IN_FOLDER: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether `path` is an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(".index.json"))
}

/// The checkpoint in a folder.
pub(super) fn in_folder(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let found = IN_FOLDER.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| CheckpointError::Folder { path: folder.display().to_string() })
}

/// The shards an index names, and which shard each tensor should be in.
pub(super) fn read(path: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, usize>), CheckpointError> {
    let bad = |reason: String| CheckpointError::Index { reason };
    let source = Source::map(path)?;
    if source.bytes().len() > MAX_INDEX {
        return Err(bad(format!("it is larger than {MAX_INDEX} bytes")));
    }
    let index: Index = serde_json::from_slice(source.bytes()).map_err(|error| bad(error.to_string()))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards = Vec::with_capacity(names.len());
    let mut numbers = BTreeMap::new();
    for name in names {
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str()) && !name.contains('\\');
        if !plain {
            return Err(bad(format!("shard `{}` is not a file name in the same folder", shown(name))));
        }
        numbers.insert(name.as_str(), shards.len());
        shards.push(folder.join(name));
    }
    let of =
        index.weight_map.iter().filter_map(|(tensor, shard)| Some((tensor.clone(), *numbers.get(shard.as_str())?)));
    let tensors: BTreeMap<String, usize> = of.collect();
    if tensors.is_empty() {
        return Err(bad("it names no tensors".into()));
    }
    Ok((shards, tensors))
}
