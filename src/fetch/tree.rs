//! A hash for every chunk of a file: says *where* a file is damaged. What a file *is* says its sha256; for the chunks,
//! BLAKE3 takes a quarter of the time.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::caller::Caller;
use super::{FetchError, boot, positioned};

/// Acceptable bytes per chunk: a tree is a file like any other.
pub(super) const CHUNKS: RangeInclusive<u64> = 1 << 10..=1 << 30;

/// BLAKE3 of one chunk.
pub(super) type Leaf = [u8; 32];

/// Chunk hashes of a file that was verified as a whole, and how the file looked then.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tree {
    /// Size of the file.
    pub bytes: u64,
    /// Bytes per leaf; the last one may be shorter.
    pub chunk: u64,
    /// Hashes, lower-case hex, in file order.
    pub leaves: Vec<String>,
    /// When the file was last known to be whole.
    pub stamp: Stamp,
}

/// What a file's metadata were when its content was last known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    seconds: u64,
    nanoseconds: u32,
    /// Start of the machine in which the file was written; `None` once it is known to be on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsettled: Option<String>,
}

impl Stamp {
    /// Stamp of `path` as it is now. `written` in this boot: it may still be in memory only.
    pub(super) fn now(path: &Path, written: bool) -> io::Result<Self> {
        let modified = std::fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unsettled = if written { boot::id().map(str::to_owned) } else { None };
        Ok(Self { seconds: modified.as_secs(), nanoseconds: modified.subsec_nanos(), unsettled })
    }

    fn same_time(&self, other: &Self) -> bool {
        (self.seconds, self.nanoseconds) == (other.seconds, other.nanoseconds)
    }
}

/// What a look at a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing happened to it since it was verified.
    Untouched,
    /// Written to, or the machine was restarted before it surely reached the disk: read it again.
    Suspect,
    /// Not there.
    Missing,
}

impl Tree {
    /// A tree of leaves computed elsewhere.
    pub(super) fn new(bytes: u64, chunk: u64, leaves: &[Leaf], stamp: Stamp) -> Self {
        Self { bytes, chunk, leaves: leaves.iter().map(hex).collect(), stamp }
    }

    /// Reads `path` and hashes its chunks; also returns the sha256 of the whole.
    pub(super) fn of(path: &Path, chunk: u64, caller: &Caller) -> Result<(Self, String), FetchError> {
        let io = || FetchError::io("read", path);
        let stamp = Stamp::now(path, false).map_err(io())?;
        let (mut whole, mut leaves) = (Sha256::new(), Vec::new());
        let bytes = File::open(path).and_then(|file| {
            let bytes = file.metadata()?.len();
            each_chunk(&file, bytes, chunk, caller, |_, part| {
                whole.update(part);
                leaves.push(leaf(part));
            })?;
            Ok(bytes)
        });
        caller.check()?;
        let bytes = bytes.map_err(io())?;
        Ok((Self::new(bytes, chunk, &leaves, stamp), hex(&whole.finalize().into())))
    }

    /// Compares metadata only.
    pub(super) fn look(&self, path: &Path) -> io::Result<Look> {
        let length = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Missing),
            Err(error) => return Err(error),
        };
        let now = Stamp::now(path, false)?;
        let settled = self.stamp.unsettled.is_none() || self.stamp.unsettled.as_deref() == boot::id();
        let untouched = length == self.bytes && self.stamp.same_time(&now) && settled;
        Ok(if untouched { Look::Untouched } else { Look::Suspect })
    }

    /// Reads the file; indices of the leaves that differ or are missing. Bytes past the end are damage of the last leaf.
    /// Says nothing of use when the caller said stop.
    pub(super) fn damage(&self, path: &Path, caller: &Caller) -> io::Result<Vec<usize>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut whole = vec![false; self.leaves.len()];
        each_chunk(&file, length.min(self.bytes), self.chunk, caller, |index, part| {
            if let (Some(stored), Some(ok)) = (self.leaves.get(index), whole.get_mut(index)) {
                *ok = part.len() as u64 == self.leaf_len(index) && *stored == hex(&leaf(part));
            }
        })?;
        if length > self.bytes
            && let Some(last) = whole.last_mut()
        {
            *last = false;
        }
        Ok(whole.iter().enumerate().filter(|(_, ok)| !**ok).map(|(index, _)| index).collect())
    }

    /// Whether the numbers fit together.
    pub(super) fn is_sound(&self) -> bool {
        CHUNKS.contains(&self.chunk) && self.leaves.len() as u64 == self.bytes.div_ceil(self.chunk)
    }

    /// Bytes of leaf `index`.
    pub(super) fn leaf_len(&self, index: usize) -> u64 {
        chunk_len(self.bytes, self.chunk, index)
    }
}

/// Bytes of chunk `index` of a file.
pub(super) fn chunk_len(total: u64, chunk: u64, index: usize) -> u64 {
    chunk.min(total.saturating_sub(chunk * index as u64))
}

/// Hands over the chunks of a file in their order, until the caller says stop.
fn each_chunk(
    file: &File,
    bytes: u64,
    chunk: u64,
    caller: &Caller,
    mut each: impl FnMut(usize, &[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; chunk.min(bytes) as usize];
    for index in 0..bytes.div_ceil(chunk) as usize {
        if caller.stopped() {
            return Ok(());
        }
        caller.progress(chunk * index as u64, Some(bytes));
        let part = &mut buffer[..chunk_len(bytes, chunk, index) as usize];
        positioned::read_at(file, part, chunk * index as u64)?;
        each(index, part);
    }
    Ok(())
}

/// The leaf of `bytes`.
pub(super) fn leaf(bytes: &[u8]) -> Leaf {
    blake3::hash(bytes).into()
}

/// sha256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> Leaf {
    Sha256::digest(bytes).into()
}

/// Lower-case hex.
pub(super) fn hex(bytes: &Leaf) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The reverse of [`hex`].
pub(super) fn unhex(text: &str) -> Option<Leaf> {
    let mut leaf = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in leaf.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(leaf)
}
