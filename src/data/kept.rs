//! A scan kept in a file: what was found, and what to look at to know whether it is still true.
//!
//! A line that says what it is, a CRC-32 (little-endian) of the rest, and the rest as JSON. A file that is torn, of
//! another version or about other data is as good as none.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dataset::Source;
use super::lossless;
use super::stamp::Stamp;
use crate::staged::StagedFile;

const MAGIC: &[u8] = b"tec-zoo scan 1\n";

/// A scan as it was kept.
#[derive(Deserialize)]
pub(super) struct Kept {
    /// What was scanned, absolute.
    #[serde(with = "lossless")]
    path: PathBuf,
    #[serde(with = "lossless")]
    pub(super) root: PathBuf,
    pub(super) source: Source,
    pub(super) stamps: Vec<Stamp>,
    pub(super) began: u64,
}

/// The same, as it is written.
#[derive(Serialize)]
struct Keeping<'a> {
    #[serde(with = "lossless")]
    path: PathBuf,
    #[serde(with = "lossless")]
    root: PathBuf,
    source: Cow<'a, Source>,
    stamps: &'a [Stamp],
    began: u64,
}

impl Kept {
    /// What `file` says of `path`; none if that is nothing.
    pub(super) fn read(file: &Path, path: &Path) -> Option<Self> {
        let bytes = fs::read(file).ok()?;
        let (checksum, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let kept: Self = serde_json::from_slice(rest).ok()?;
        let consistent = match &kept.source {
            Source::Files { names, sizes, .. } => {
                names.is_consistent() && names.len() == sizes.len() && names.len() > 0
            }
            Source::Shards(shards) => shards.is_consistent() && shards.len() > 0,
        };
        (consistent && kept.path == std::path::absolute(path).ok()?).then_some(kept)
    }

    /// Writes a scan of `path` as `file`, with absolute paths: the next one may look from elsewhere.
    pub(super) fn write(
        file: &Path,
        path: &Path,
        root: &Path,
        source: &Source,
        stamps: &[Stamp],
        began: u64,
    ) -> io::Result<()> {
        let root = match root.as_os_str().is_empty() {
            true => std::env::current_dir()?,
            false => std::path::absolute(root)?,
        };
        let source = match source {
            Source::Shards(shards) => Cow::Owned(Source::Shards(shards.absolute()?)),
            files @ Source::Files { .. } => Cow::Borrowed(files),
        };
        let kept = Keeping { path: std::path::absolute(path)?, root, source, stamps, began };
        let rest = serde_json::to_vec(&kept)?;
        let mut staged = StagedFile::new(file)?;
        staged.file().write_all(MAGIC)?;
        staged.file().write_all(&crc32fast::hash(&rest).to_le_bytes())?;
        staged.file().write_all(&rest)?;
        staged.commit()
    }
}
