//! WebDataset shards: images in tar archives, addressed one by one.
//!
//! An archive's headers are read once, stepping over the payloads; what is kept is 16 bytes an image. As in WebDataset, a
//! member's format is what follows the *first* dot of its name, so that `0001.jpg` is sample `0001` and `0001.seg.png`, its
//! segmentation, is no image to train on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::formats::{READ, Unread};
use super::scan::{Listener, ScanEvent};
use super::stamp::Stamp;
use super::{DataError, lossless};

/// Bytes of a tar header, which stands directly before what it describes.
const HEADER: u64 = 512;

/// Where an image's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    at: u64,
    shard: u32,
    len: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shard {
    #[serde(with = "lossless")]
    pub(super) path: PathBuf,
    bytes: u64,
    /// sha256 of the names, places and sizes of its images.
    pub(super) listing: [u8; 32],
}

/// An archive that ends too early, or in which a header makes no sense. What stands before that is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedShard {
    /// The archive.
    #[serde(with = "lossless")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Images of it that are used.
    pub images: u64,
}

/// Images in archives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shards {
    pub(super) shards: Vec<Shard>,
    members: Vec<Member>,
    /// Members whose name ends like an image's but has something before that ending.
    pub(super) passed_over: u64,
    pub(super) damaged: Vec<DamagedShard>,
    pub(super) unread: Unread,
}

/// The images of one archive.
#[derive(Debug)]
struct Listing {
    stamp: Stamp,
    bytes: u64,
    members: Vec<Member>,
    hash: Sha256,
    passed_over: u64,
    unread: Unread,
    damage: Option<String>,
}

impl Shards {
    /// Reads the headers of all archives; also says when each archive was changed.
    pub(super) fn index(paths: Vec<PathBuf>, listener: &mut Listener<'_>) -> Result<(Self, Vec<Stamp>), DataError> {
        let listings = listener.in_parallel(
            paths.len(),
            |done, of| ScanEvent::Reading { done, of },
            |at, stop| {
                let shard = u32::try_from(at).map_err(|error| refused(&paths[at], error))?;
                list(&paths[at], shard, stop)
            },
        )?;
        let (mut all, mut stamps) = (Self::default(), Vec::new());
        for (path, listing) in paths.into_iter().zip(listings) {
            let listing = listing?;
            let images = listing.members.len() as u64;
            let damage = listing.damage.map(|reason| DamagedShard { path: path.clone(), reason, images });
            all.damaged.extend(damage);
            all.shards.push(Shard { path, bytes: listing.bytes, listing: listing.hash.finalize().into() });
            all.members.extend(listing.members);
            all.passed_over += listing.passed_over;
            all.unread.add(listing.unread);
            stamps.push(listing.stamp);
        }
        all.members.shrink_to_fit();
        Ok((all, stamps))
    }

    /// The same, found from anywhere.
    pub(super) fn absolute(&self) -> io::Result<Self> {
        let mut all = self.clone();
        let paths = all.shards.iter_mut().map(|shard| &mut shard.path);
        for path in paths.chain(all.damaged.iter_mut().map(|damaged| &mut damaged.path)) {
            *path = std::path::absolute(&path)?;
        }
        Ok(all)
    }

    /// Whether every member is in a shard that there is.
    pub(super) fn is_consistent(&self) -> bool {
        self.members.iter().all(|member| (member.shard as usize) < self.shards.len() && member.at >= HEADER)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The archive of image `index`.
    pub(super) fn path(&self, index: usize) -> &Path {
        &self.shards[self.members[index].shard as usize].path
    }

    /// Bytes of image `index`.
    pub(super) fn size(&self, index: usize) -> u64 {
        self.members[index].len.into()
    }

    /// Reads image `index`, or as much of it as `most`, into `bytes`, and what it is called in its archive.
    pub(super) fn read(&self, index: usize, most: u64, bytes: &mut Vec<u8>) -> io::Result<String> {
        let member = self.members[index];
        let shard = &self.shards[member.shard as usize];
        let mut file = File::open(&shard.path)?;
        if file.metadata()?.len() != shard.bytes {
            return Err(io::Error::other("the shard has changed since it was indexed"));
        }
        let mut header = [0; HEADER as usize];
        file.seek(SeekFrom::Start(member.at - HEADER))?;
        file.read_exact(&mut header)?;
        bytes.resize(u64::from(member.len).min(most) as usize, 0);
        file.read_exact(bytes)?;
        Ok(String::from_utf8_lossy(&tar::Header::from_byte_slice(&header).path_bytes()).into_owned())
    }
}

fn refused(path: &Path, reason: impl std::fmt::Display) -> DataError {
    DataError::Source { path: path.display().to_string(), reason: reason.to_string() }
}

/// What follows the first dot of the name's last part, in lower case.
fn format(name: &str) -> Option<String> {
    let base = name.rsplit('/').next()?;
    if base.starts_with("._") {
        return None;
    }
    Some(base.split_once('.')?.1.to_ascii_lowercase())
}

fn list(path: &Path, shard: u32, stop: &AtomicBool) -> Result<Listing, DataError> {
    let io = |source| DataError::Io { path: path.display().to_string(), source };
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(refused(path, "it is no ordinary file"));
    }
    let stamp = Stamp::of(path).map_err(io)?;
    let file = File::open(path).map_err(io)?;
    let mut listing = Listing {
        stamp,
        bytes: file.metadata().map_err(io)?.len(),
        members: Vec::new(),
        hash: Sha256::new(),
        passed_over: 0,
        unread: Unread::default(),
        damage: None,
    };
    let mut archive = tar::Archive::new(file);
    let mut entries = archive.entries_with_seek().map_err(io)?;
    // Where the next header is expected.
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let entry = match entries.next() {
            None => break,
            Some(Ok(entry)) => entry,
            Some(Err(error)) => {
                listing.damage = Some(damage(&error, next, listing.bytes));
                break;
            }
        };
        let (at, len) = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(end) = at.checked_add(len).filter(|&end| end <= listing.bytes) else {
            let end = u128::from(at) + u128::from(len);
            listing.damage = Some(format!("it is truncated: `{name}` should end at byte {end} of {}", listing.bytes));
            break;
        };
        next = end.next_multiple_of(HEADER);
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let format = format(&name).unwrap_or_default();
        if READ.contains(&format.as_str()) {
            let Ok(len) = u32::try_from(len) else {
                listing.damage = Some(format!("`{name}` has {len} bytes"));
                break;
            };
            listing.hash.update((name.len() as u64).to_le_bytes());
            listing.hash.update(&name);
            listing.hash.update(at.to_le_bytes());
            listing.hash.update(len.to_le_bytes());
            listing.members.push(Member { at, shard, len });
        } else if format.rsplit('.').next().is_some_and(|last| READ.contains(&last)) {
            listing.passed_over += 1;
        } else {
            listing.unread.see(&format);
        }
    }
    Ok(listing)
}

/// What is wrong with an archive of `bytes` whose header at about byte `at` cannot be read.
fn damage(error: &io::Error, at: u64, bytes: u64) -> String {
    // The reader has no kind of error for an end within a header, nor for one between an extended header and what it extends.
    let said = error.to_string();
    let within = at.saturating_add(HEADER) > bytes || said.contains("entire block") || said.contains("future member");
    let ends = within || error.kind() == io::ErrorKind::UnexpectedEof;
    match ends {
        true => format!("it is truncated: it ends at byte {bytes}, within what begins at byte {at}"),
        false => format!("what begins at byte {at} of {bytes} is no header: {error}"),
    }
}
