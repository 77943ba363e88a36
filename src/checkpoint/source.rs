//! The bytes of one file: mapped, or already in memory.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use super::CheckpointError;

/// One file's bytes.
pub(super) enum Source {
    /// A file on disk.
    Mapped { file: File, map: Mmap },
    /// Bytes embedded in the program or handed over by a caller.
    Memory(Cow<'static, [u8]>),
}

impl fmt::Debug for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes", self.bytes().len())
    }
}

impl Source {
    /// Maps a file read-only.
    pub(super) fn map(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.display().to_string(), source };
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(CheckpointError::Special { path: path.display().to_string() });
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Err(CheckpointError::Empty { path: path.display().to_string() });
        }
        // SAFETY: the map is only ever read. A writer that shortens the file under it ends the process with SIGBUS, as
        // with every mapped file; nothing here assumes that the bytes stay the same between two reads.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped { file, map })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } => map,
            Self::Memory(bytes) => bytes,
        }
    }

    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Mapped { file, .. } => Some(file),
            Self::Memory(_) => None,
        }
    }
}
