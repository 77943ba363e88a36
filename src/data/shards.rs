//! WebDataset shards: images in tar archives, addressed one by one.
//!
//! An archive's headers are read once, stepping over the payloads; what is kept is 16 bytes an image. As in WebDataset, a
//! member's format is what follows the *first* dot of its name, so that `0001.jpg` is sample `0001` and `0001.seg.png`, its
//! segmentation, is no image to train on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::DataError;

/// Bytes of a tar header, which stands directly before what it describes.
const HEADER: u64 = 512;

/// Archives that are read at the same time: the wait for a disk, not the work, is what takes long.
const READERS: usize = 8;

/// Where an image's bytes lie.
#[derive(Debug, Clone, Copy)]
struct Member {
    at: u64,
    shard: u32,
    len: u32,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: u64,
}

/// Images in archives.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    members: Vec<Member>,
    /// Members whose name ends like an image's but has something before that ending.
    pub(super) passed_over: u64,
}

/// The images of one archive.
#[derive(Debug, Default)]
struct Listing {
    bytes: u64,
    members: Vec<Member>,
    passed_over: u64,
}

impl Shards {
    /// Reads the headers of all archives.
    pub(super) fn index(paths: Vec<PathBuf>) -> Result<Self, DataError> {
        let next = AtomicUsize::new(0);
        let listings: Mutex<Vec<(usize, Result<Listing, DataError>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(paths.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(path) = paths.get(at) else { return };
                        let listing =
                            u32::try_from(at).map_err(|error| refused(path, error)).and_then(|shard| list(path, shard));
                        if let Ok(mut listings) = listings.lock() {
                            listings.push((at, listing));
                        }
                    }
                });
            }
        });
        let mut listings = listings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        listings.sort_unstable_by_key(|(at, _)| *at);
        let mut all = Self { shards: Vec::new(), members: Vec::new(), passed_over: 0 };
        for (path, (_, listing)) in paths.into_iter().zip(listings) {
            let listing = listing?;
            all.shards.push(Shard { path, bytes: listing.bytes });
            all.members.extend(listing.members);
            all.passed_over += listing.passed_over;
        }
        all.members.shrink_to_fit();
        Ok(all)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The archive of image `index`.
    pub(super) fn path(&self, index: usize) -> &Path {
        &self.shards[self.members[index].shard as usize].path
    }

    /// Reads image `index` into `bytes`, and what it is called in its archive.
    pub(super) fn read(&self, index: usize, bytes: &mut Vec<u8>) -> io::Result<String> {
        let member = self.members[index];
        let shard = &self.shards[member.shard as usize];
        let mut file = File::open(&shard.path)?;
        if file.metadata()?.len() != shard.bytes {
            return Err(io::Error::other("the shard has changed since it was indexed"));
        }
        let mut header = [0; HEADER as usize];
        file.seek(SeekFrom::Start(member.at - HEADER))?;
        file.read_exact(&mut header)?;
        bytes.resize(member.len as usize, 0);
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

fn list(path: &Path, shard: u32) -> Result<Listing, DataError> {
    const FORMATS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
    let io = |source| DataError::Io { path: path.display().to_string(), source };
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(refused(path, "it is no ordinary file"));
    }
    let file = File::open(path).map_err(io)?;
    let mut listing = Listing { bytes: file.metadata().map_err(io)?.len(), ..Listing::default() };
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(|error| refused(path, error))? {
        let entry = entry.map_err(|error| refused(path, error))?;
        let (at, len) = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if at.checked_add(len).is_none_or(|end| end > listing.bytes) {
            return Err(refused(
                path,
                format!(
                    "it is truncated: `{name}` should end at byte {} of {}",
                    u128::from(at) + u128::from(len),
                    listing.bytes
                ),
            ));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let format = format(&name).unwrap_or_default();
        if FORMATS.contains(&format.as_str()) {
            let len = u32::try_from(len).map_err(|_| refused(path, format!("`{name}` has {len} bytes")))?;
            listing.members.push(Member { at, shard, len });
        } else if format.rsplit('.').next().is_some_and(|last| FORMATS.contains(&last)) {
            listing.passed_over += 1;
        }
    }
    Ok(listing)
}
