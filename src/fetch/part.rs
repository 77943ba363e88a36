//! A download in progress on disk: the file, and a journal of what of it is there.
//!
//! The journal is only ever appended to, a line at a time, after the bytes the line speaks of were written; a torn last
//! line is ignored. Whole chunks carry their hash and are read again before they count. The beginning of a chunk counts
//! only within the same start of the machine: after a power cut, nobody knows what of it reached the disk.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::http::Validator;
use super::store::write_atomically;
use super::tree::{self, CHUNKS, Leaf, chunk_len, hex};
use super::{FetchError, boot, positioned};

const MAX_JOURNAL_BYTES: u64 = 256 << 20;

/// First line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    /// Size of the whole file.
    pub total: u64,
    /// Bytes per chunk.
    pub chunk: u64,
    /// sha256 of the address it came from, or none when the content was known by hash: an address may hold a signature.
    pub source: Option<String>,
    /// The server's own mark of the file's state.
    pub etag: Option<String>,
    /// The server's date of the file's state.
    pub modified: Option<String>,
    /// Start of the machine in which it was written.
    pub boot: Option<String>,
}

impl Head {
    fn validator(&self) -> Validator {
        Validator { etag: self.etag.clone(), modified: self.modified.clone() }
    }

    /// Whether what a part with this head holds can go on with `now`.
    fn continues(&self, now: &Self) -> bool {
        let same_place = self.source == now.source;
        // Known by hash, the content is the same wherever it comes from; otherwise place and state must agree.
        let same_content = match same_place {
            true => !self.validator().contradicts(&now.validator()),
            false => self.source.is_none() && now.source.is_none(),
        };
        self.total == now.total && CHUNKS.contains(&self.chunk) && same_content
    }
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// This many bytes of it are there.
    Missing(u64),
    /// A worker has it.
    Taken,
    /// It is there, with this hash.
    Done(Leaf),
}

/// An open part.
#[derive(Debug)]
pub(super) struct Part {
    /// Path of the data.
    pub path: PathBuf,
    /// The data.
    pub file: File,
    /// Sizes and origin.
    pub head: Head,
    /// What is there.
    pub chunks: Vec<Chunk>,
    journal: File,
}

fn journal_path(path: &Path) -> PathBuf {
    path.with_extension("journal")
}

impl Part {
    /// Opens the part at `path`, with what can be kept of an earlier one, in chunks of that one's size.
    pub(super) fn open(path: &Path, mut head: Head, caller: &Caller) -> Result<Self, FetchError> {
        let kept = Self::kept(path, &head, caller);
        // What was not read to its end says nothing against the part.
        caller.check().map_err(FetchError::resuming)?;
        let chunks = match kept {
            Some((chunk, chunks)) => {
                head.chunk = chunk;
                chunks
            }
            None => {
                Self::remove(path)?;
                vec![Chunk::Missing(0); head.total.div_ceil(head.chunk) as usize]
            }
        };
        Self::begin(path, head, chunks)
    }

    /// Makes a part of a damaged file: everything but the leaves in `damaged` is kept.
    pub(super) fn of_damaged(path: &Path, head: Head, leaves: Vec<Option<Leaf>>) -> Result<(), FetchError> {
        let chunks = leaves.into_iter().map(|leaf| leaf.map_or(Chunk::Missing(0), Chunk::Done)).collect();
        Self::begin(path, head, chunks).map(drop)
    }

    /// Writes a new journal that says what `chunks` says.
    fn begin(path: &Path, mut head: Head, chunks: Vec<Chunk>) -> Result<Self, FetchError> {
        let io = FetchError::io;
        head.boot = boot::id().map(str::to_owned);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(io("open", path))?;
        file.set_len(head.total).map_err(FetchError::write(path, head.total))?;
        let journal_path = journal_path(path);
        let mut text = serde_json::to_string(&head).unwrap_or_default() + "\n";
        for (index, chunk) in chunks.iter().enumerate() {
            text += &line(index, *chunk);
        }
        // The old journal stays valid until the new one is whole.
        write_atomically(&journal_path, &text)?;
        let journal = OpenOptions::new().append(true).open(&journal_path).map_err(io("open", &journal_path))?;
        Ok(Self { path: path.to_path_buf(), file, head, chunks, journal })
    }

    /// What an earlier part holds that can be kept; `None` when nothing can.
    fn kept(path: &Path, head: &Head, caller: &Caller) -> Option<(u64, Vec<Chunk>)> {
        let journal_path = journal_path(path);
        if std::fs::metadata(&journal_path).ok()?.len() > MAX_JOURNAL_BYTES {
            return None;
        }
        let text = std::fs::read_to_string(&journal_path).ok()?;
        // Only lines that were written to their end.
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let before: Head = serde_json::from_str(lines.next()?).ok()?;
        let file = File::open(path).ok()?;
        let chunk = before.chunk;
        if !before.continues(head) || file.metadata().ok()?.len() != head.total {
            return None;
        }
        let mut claims: Vec<Claim> = vec![Claim::Some(0); head.total.div_ceil(chunk) as usize];
        for line in lines {
            let (index, claim) = parse(line)?;
            *claims.get_mut(index)? = claim;
        }
        let same_boot = before.boot.is_some() && before.boot.as_deref() == boot::id();
        let mut buffer = Vec::new();
        let chunks = claims.into_iter().enumerate().map(|(index, claim)| {
            let len = chunk_len(head.total, chunk, index);
            match claim {
                Claim::Done(_) if caller.stopped() => Chunk::Missing(0),
                Claim::Done(hash) => {
                    buffer.resize(len as usize, 0);
                    let read = positioned::read_at(&file, &mut buffer, chunk * index as u64);
                    let leaf = tree::leaf(&buffer);
                    if read.is_ok() && hex(&leaf) == hash { Chunk::Done(leaf) } else { Chunk::Missing(0) }
                }
                Claim::Some(bytes) if same_boot && bytes < len => Chunk::Missing(bytes),
                Claim::Some(_) => Chunk::Missing(0),
            }
        });
        Some((chunk, chunks.collect()))
    }

    /// Bytes of the file that are there.
    pub(super) fn have(&self) -> u64 {
        let len = |index| chunk_len(self.head.total, self.head.chunk, index);
        let each = self.chunks.iter().enumerate().map(|(index, chunk)| match chunk {
            Chunk::Done(_) => len(index),
            Chunk::Missing(bytes) => *bytes,
            Chunk::Taken => 0,
        });
        each.sum()
    }

    /// Notes that a chunk is there, or its first bytes.
    pub(super) fn note(journal: &File, index: usize, chunk: Chunk) -> std::io::Result<()> {
        (&mut &*journal).write_all(line(index, chunk).as_bytes())
    }

    /// Where notes go.
    pub(super) fn journal(&self) -> &File {
        &self.journal
    }

    /// Removes data and journal, the journal first: data without it counts for nothing.
    pub(super) fn remove(path: &Path) -> Result<(), FetchError> {
        for path in [&journal_path(path), path] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FetchError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the journal of a part whose data has moved into the store.
    pub(super) fn forget_journal(path: &Path) {
        // One that stays behind is found without its data, and dropped.
        let _ = std::fs::remove_file(journal_path(path));
    }
}

#[derive(Clone)]
enum Claim {
    Done(String),
    Some(u64),
}

fn line(index: usize, chunk: Chunk) -> String {
    match chunk {
        Chunk::Done(leaf) => format!("done {index} {}\n", hex(&leaf)),
        Chunk::Missing(bytes) if bytes > 0 => format!("some {index} {bytes}\n"),
        Chunk::Missing(_) | Chunk::Taken => String::new(),
    }
}

fn parse(line: &str) -> Option<(usize, Claim)> {
    let mut words = line.split(' ');
    let (kind, index, value) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    match kind {
        "done" => Some((index, Claim::Done(value.to_owned()))),
        "some" => Some((index, Claim::Some(value.parse().ok()?))),
        _ => None,
    }
}
