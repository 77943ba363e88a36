//! The bytes of one file: mapped, or already in memory.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::CheckpointError;

/// Bytes read at a time: within a core's own cache, so that whoever looks next finds them there.
const PIECE: usize = 1 << 20;

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                at += read as u64;
            }
        }
    }
    Ok(())
}

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

    /// Hands over the bytes of `range` in pieces, front to back.
    ///
    /// A file is read, not looked at through its map: a pass over a gigabyte costs a page fault every few pages there, which
    /// is more than the copy, and two threads doing it wait for each other. A file that was shortened meanwhile ends in an
    /// error here.
    pub(super) fn stream<E: From<CheckpointError>>(
        &self,
        range: Range<usize>,
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = match self {
            Self::Memory(bytes) => return bytes[range].chunks(PIECE).try_for_each(each),
            Self::Mapped { file, .. } => file,
        };
        let mut buffer = vec![0; PIECE.min(range.len())];
        let mut at = range.start;
        while at < range.end {
            let wanted = PIECE.min(range.end - at);
            let piece = &mut buffer[..wanted];
            read_exact_at(file, piece, at as u64).map_err(|source| CheckpointError::Reread { source })?;
            each(piece)?;
            at += wanted;
        }
        Ok(())
    }

    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Mapped { file, .. } => Some(file),
            Self::Memory(_) => None,
        }
    }
}
