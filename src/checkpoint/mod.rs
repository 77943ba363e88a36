//! Checkpoint containers, read as hostile input: torch zip, torch legacy, the older tar, safetensors, and sharded
//! files with an index.
//!
//! Header first: opening a file decides names, types, shapes and places; bytes are fetched tensor by tensor from a
//! memory map. A pickle is data: nothing it names is ever imported or run.

mod error;
mod globals;
mod legacy;
mod pickle;
mod place;
mod safetensors;
mod sharded;
mod source;
mod survey;
mod tar;
mod torch;
pub(crate) mod write;
pub(crate) mod zip;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;
use indexmap::IndexSet;

pub use error::CheckpointError;
use place::Place;
use source::Source;
pub use survey::{GlobalUse, Leaf, Survey};

/// The container a checkpoint came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ContainerKind {
    /// `torch.save` since 1.6: an uncompressed zip.
    TorchZip,
    /// `torch.save` before 1.6: magic number, pickles, raw storages.
    TorchLegacy,
    /// `torch.save` before 0.1.10: a tar of pickles.
    TorchTar,
    /// safetensors.
    Safetensors,
    /// Several files with a `*.index.json`.
    Sharded,
}

impl ContainerKind {
    /// Name used in reports and provenance.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchZip => "torch-zip",
            Self::TorchLegacy => "torch-legacy",
            Self::TorchTar => "torch-tar",
            Self::Safetensors => "safetensors",
            Self::Sharded => "sharded",
        }
    }
}

/// A tensor as the container describes it.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Dictionary keys from the root object to the tensor, such as `["model", "blocks.0.norm1.weight"]`; positions in
    /// lists are decimal.
    pub path: Vec<String>,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    place: Place,
}

/// Where a tensor's bytes lie whole, contiguous, row-major and little-endian in a file.
#[derive(Debug, Clone, Copy)]
pub struct FileSpan<'a> {
    /// The open file.
    pub file: &'a std::fs::File,
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    kind: ContainerKind,
    sources: Vec<Source>,
    tensors: Vec<TensorEntry>,
    /// What a zip says its entries' bytes hash to, by source and start.
    checksums: HashMap<(usize, usize), (Range<usize>, u32)>,
}

impl Checkpoint {
    /// Opens a file, a sharded index, or a folder that holds one.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file and what is wrong with it. A pickle that names anything outside the list of
    /// inert names is refused; [`Checkpoint::survey`] shows what it names.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::survey(path)?.trusted().map_err(|error| error.in_file(path))
    }

    /// A checkpoint that is already in memory (embedded in the program, or made by a fuzzer); `name` stands in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self, CheckpointError> {
        if bytes.is_empty() {
            return Err(CheckpointError::Empty { path: name.to_owned() });
        }
        let read = survey::file(Source::Memory(bytes));
        read.and_then(Survey::trusted).map_err(|error| error.in_file(Path::new(name)))
    }

    /// Reads a file's header without judging the names in its pickle: what `inspect` shows.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], but for unknown names.
    pub fn survey(path: &Path) -> Result<Survey, CheckpointError> {
        let metadata = std::fs::metadata(path)
            .map_err(|source| CheckpointError::Io { path: path.display().to_string(), source })?;
        let found;
        let path = match metadata.is_dir() {
            true => {
                found = sharded::in_folder(path)?;
                &found
            }
            false => path,
        };
        let read = match sharded::is_index(path) {
            true => Self::shards(path),
            false => Source::map(path).and_then(survey::file),
        };
        read.map_err(|error| error.in_file(path))
    }

    fn shards(path: &Path) -> Result<Survey, CheckpointError> {
        let (shards, places) = sharded::read(path)?;
        let survey = survey::shards(&shards)?;
        let here: HashSet<(String, usize)> =
            survey.checkpoint.tensors.iter().map(|tensor| (tensor.path.join("."), tensor.place.source)).collect();
        for (name, &shard) in &places {
            if !here.contains(&(name.clone(), shard)) {
                let shard = shards[shard].file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(CheckpointError::Index {
                    reason: format!("`{}` is not in its shard `{}`", error::shown(name), error::shown(&shard)),
                });
            }
        }
        Ok(survey)
    }

    /// The container.
    pub fn container(&self) -> ContainerKind {
        self.kind
    }

    /// Every tensor reachable from the root through dictionaries, lists and objects' attributes, in file order. A tensor
    /// reachable by two paths is listed twice; no path is listed twice.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Keys of the tensors and dictionaries directly below `path`, in file order; `None` when nothing is there.
    pub fn keys(&self, path: &[&str]) -> Option<Vec<String>> {
        let mut out = IndexSet::new();
        for tensor in &self.tensors {
            let below = tensor.path.len() > path.len() && tensor.path.iter().zip(path).all(|(a, b)| a == b);
            if below {
                out.insert(&tensor.path[path.len()]);
            }
        }
        (!out.is_empty()).then(|| out.into_iter().cloned().collect())
    }

    /// Row-major little-endian bytes of a tensor: borrowed from the map where they lie so, gathered where strides
    /// demand it.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when a view repeats elements until they take more memory than the file has bytes.
    ///
    /// # Panics
    /// When `entry` is another checkpoint's.
    pub fn bytes(&self, entry: &TensorEntry) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let gathered = entry.place.gather(&entry.shape, self.sources[entry.place.source].bytes());
        gathered.map_err(|reason| CheckpointError::tensor(&entry.path, reason))
    }

    /// Hands over a tensor's bytes as [`Checkpoint::bytes`] would give them, in pieces, and compares them with the
    /// container's own checksum on the way; only torch zips have one. Opening a file reads no tensor, so a turned bit
    /// shows here and nowhere before.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when they are not what was written, after all pieces; as for [`Checkpoint::bytes`];
    /// and whatever `each` returns.
    pub fn stream<E: From<CheckpointError>>(
        &self,
        entry: &TensorEntry,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = &entry.place;
        let source = &self.sources[place.source];
        let (storage, checksum) = match self.checksums.get(&(place.source, place.storage.start)) {
            Some((storage, checksum)) => (storage.clone(), Some(*checksum)),
            None => (place.storage.clone(), None),
        };
        let mut hash = crc32fast::Hasher::new();
        match place.contiguous(&entry.shape) {
            // Most tensors are all of their storage.
            Some(range) if range == storage || checksum.is_none() => source.stream(range, &mut |piece| {
                if checksum.is_some() {
                    hash.update(piece);
                }
                each(piece)
            })?,
            _ => {
                source.stream(storage, &mut |piece| {
                    hash.update(piece);
                    Ok::<(), E>(())
                })?;
                each(&self.bytes(entry)?)?;
            }
        }
        // A fuzzer would spend its life on checksums.
        if checksum.is_some_and(|checksum| !cfg!(fuzzing) && hash.finalize() != checksum) {
            return Err(CheckpointError::Damaged { name: error::shown(&entry.path.join(".")) }.into());
        }
        Ok(())
    }

    /// Where the bytes lie in a file, when they need no gathering: lets the kernel copy them file to file.
    pub fn span(&self, entry: &TensorEntry) -> Option<FileSpan<'_>> {
        let file = self.sources[entry.place.source].file()?;
        let range = entry.place.contiguous(&entry.shape)?;
        Some(FileSpan { file, offset: range.start as u64, len: range.len() as u64 })
    }

    /// Hands over all bytes of all files in pieces: what a checksum is computed over.
    ///
    /// # Errors
    /// [`CheckpointError::Reread`], and whatever `each` returns.
    pub fn stream_files<E: From<CheckpointError>>(
        &self,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.sources.iter().try_for_each(|source| source.stream(0..source.bytes().len(), each))
    }
}
