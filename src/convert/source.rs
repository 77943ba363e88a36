//! The checkpoint's files as provenance: names, sizes, and the sha256 computed while they are being converted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

const BLOCK: usize = 1 << 20;

/// Where a checkpoint's bytes are, to hash them.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    name: String,
    place: Place<'a>,
}

#[derive(Debug, Clone)]
enum Place<'a> {
    Files(Vec<PathBuf>),
    Bytes(&'a [u8]),
}

impl Source<'static> {
    /// The file `path`; of a sharded checkpoint, its index and then every shard in the order of their names, whose hash
    /// is that of all of them in one.
    pub fn file(path: &Path) -> Self {
        let index = if path.is_dir() { index_in(path) } else { Some(path.to_path_buf()) };
        let file = index.unwrap_or_else(|| path.to_path_buf());
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        let mut files = vec![file.clone()];
        if name.ends_with(".index.json") {
            files.extend(shards(&file));
        }
        Self { name, place: Place::Files(files) }
    }
}

impl<'a> Source<'a> {
    /// A checkpoint that is in memory.
    pub fn bytes(name: &str, bytes: &'a [u8]) -> Self {
        Self { name: name.to_owned(), place: Place::Bytes(bytes) }
    }

    /// The file's name, never its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size and lower-case hex sha256; `None` once `stop` is set.
    pub(crate) fn digest(&self, stop: &AtomicBool) -> io::Result<Option<(u64, String)>> {
        let mut hash = Sha256::new();
        let mut size = 0;
        match &self.place {
            Place::Bytes(bytes) => {
                hash.update(bytes);
                size = bytes.len() as u64;
            }
            Place::Files(files) => {
                let mut block = vec![0; BLOCK];
                for path in files {
                    let mut file = File::open(path)?;
                    loop {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(None);
                        }
                        match file.read(&mut block)? {
                            0 => break,
                            read => {
                                hash.update(&block[..read]);
                                size += read as u64;
                            }
                        }
                    }
                }
            }
        }
        let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some((size, hex)))
    }
}

/// What a directory is opened by, in the order the reader of checkpoints looks.
fn index_in(dir: &Path) -> Option<PathBuf> {
    ["model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin"]
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
}

/// The files an index names, sorted; an index that cannot be read has been refused by the reader of checkpoints.
fn shards(index: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(index).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let map = json.get("weight_map").and_then(serde_json::Value::as_object);
    let names: BTreeSet<&str> = map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str()).collect();
    let folder = index.parent().unwrap_or(Path::new(""));
    names.into_iter().map(|name| folder.join(name)).collect()
}
