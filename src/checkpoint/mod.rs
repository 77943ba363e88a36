//! Checkpoint containers, read as hostile input: torch zip, torch legacy, the older tar, safetensors, and sharded
//! files with an index.
//!
//! Header first: opening a file decides names, types, shapes and places; bytes are fetched tensor by tensor from a
//! memory map. A pickle is data: nothing it names is ever imported or run.

use std::borrow::Cow;
use std::path::Path;

use safetensors::Dtype;

/// The container a checkpoint came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Dictionary keys from the root object to the tensor, such as `["model", "blocks.0.norm1.weight"]`.
    pub path: Vec<String>,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {}

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

impl Checkpoint {
    /// Opens a file, a sharded index, or a directory that holds one.
    pub fn open(_path: &Path) -> Result<Self, CheckpointError> {
        todo!()
    }

    /// A checkpoint that is already in memory (embedded in the program, or made by a fuzzer).
    pub fn from_bytes(_name: &str, _bytes: Cow<'static, [u8]>) -> Result<Self, CheckpointError> {
        todo!()
    }

    /// The container.
    pub fn container(&self) -> ContainerKind {
        todo!()
    }

    /// Every tensor reachable from the root through dictionaries and lists, in file order. A tensor reachable twice is listed twice.
    pub fn tensors(&self) -> &[TensorEntry] {
        todo!()
    }

    /// Keys of the dictionary at `path`, or `None` when there is none.
    pub fn keys(&self, _path: &[&str]) -> Option<Vec<String>> {
        todo!()
    }

    /// Row-major little-endian bytes of a tensor: borrowed from the map where they lie so, gathered where strides demand it.
    pub fn bytes(&self, _entry: &TensorEntry) -> Result<Cow<'_, [u8]>, CheckpointError> {
        todo!()
    }

    /// Where the bytes lie in a file, when they need no gathering: lets the kernel copy them file to file.
    pub fn span(&self, _entry: &TensorEntry) -> Option<FileSpan<'_>> {
        todo!()
    }
}
