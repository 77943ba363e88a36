//! A torch zip on a server, of which only what is needed comes here.
//!
//! First its directory and its pickle: enough to list every tensor. Then the storages somebody asks for. They lie at
//! their own places in a sparse file of the whole one's size; entries that are not here have a stand-in header there, so
//! that the ordinary reader of checkpoints reads the file like any other.
//!
//! A file read in part has no hash to be known by: every entry is compared with the archive's own checksum instead. The
//! sparse file is gone when the reading ends, well or not: what was interrupted begins again.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use tempfile::NamedTempFile;

use super::board::stalled;
use super::caller::{Caller, attended};
use super::http::{Http, Validator, read_some};
use super::retry::{Failure, Patience};
use super::{Event, FetchError, Options, Store, address, positioned};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::zip::{self, Listed};
use crate::convert::ConvertError;

/// End record, comment and zip64 records at most.
const TAIL: u64 = 22 + 65_535 + 20 + 56;
/// Bounds on what is read unseen.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_PICKLE: usize = 256 << 20;
/// Bytes asked for in one request at most.
const PIECE: u64 = 8 << 20;
/// Length of a local header before its name.
const LOCAL_HEADER: usize = 30;

/// A torch zip on a server.
pub struct Remote<'a> {
    http: Http<'a>,
    options: &'a Options,
    address: String,
    validator: Validator,
    file: NamedTempFile,
    total: u64,
    fetched: u64,
    entries: Vec<Entry>,
}

/// An entry of the archive, in the order of the file.
struct Entry {
    listed: Listed,
    /// Where the next entry's header, or the directory, begins.
    end: usize,
    here: bool,
}

impl Entry {
    fn is_storage(&self) -> bool {
        self.listed.name.contains("/data/")
    }

    /// Where a stand-in header says its data are.
    fn stand_in(&self) -> Range<usize> {
        let start = self.listed.header + LOCAL_HEADER + self.listed.name.len();
        start..start + self.listed.size
    }
}

impl<'a> Remote<'a> {
    /// Reads the directory and the pickle of the torch zip at `url`. The sparse file is made in the store's folder.
    ///
    /// # Errors
    /// [`FetchError::Source`] when the server does not do ranges, or fails; [`FetchError::Convert`] when it is no torch
    /// zip.
    pub fn open(
        store: &Store,
        url: &str,
        options: &'a Options,
        events: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Self, FetchError> {
        attended(events, |caller| {
            caller.tell(Event::Source { address: address::shown(url) });
            Self::reach(store, url, options, caller)
        })
    }

    /// [`Remote::open`], within work that has a caller already.
    pub(super) fn reach(store: &Store, url: &str, options: &'a Options, caller: &Caller) -> Result<Self, FetchError> {
        if options.offline {
            return Err(FetchError::Offline { model: address::shown(url) });
        }
        let failed = |failure| source_error(url, failure);
        let http = Http::new(options).map_err(failed)?;
        let reply = Patience::new(options).repeating(caller, |_| {
            http.get(url, Some((0, 0)), None, caller).map(|reply| (reply.range, reply.encoding, reply.validator))
        });
        let (Some((_, _, total)), None, validator) = reply.map_err(failed)? else {
            let reason = "the server does not give parts of the file; it must be fetched whole".to_owned();
            return Err(FetchError::Source { address: address::shown(url), reason });
        };
        if total > options.max_bytes {
            let reason = format!("{total} bytes are more than the {} accepted", options.max_bytes);
            return Err(FetchError::Source { address: address::shown(url), reason });
        }
        let folder = store.home().join("partial");
        let io = || FetchError::io("make a file in", &folder);
        let file = tempfile::Builder::new().prefix(".remote-").tempfile_in(&folder).map_err(io())?;
        file.as_file().set_len(total).map_err(io())?;
        let address = url.to_owned();
        let mut remote = Self { http, options, address, validator, file, total, fetched: 1, entries: Vec::new() };
        remote.read_directory(caller)?;
        remote.read_small_entries(caller)?;
        Ok(remote)
    }

    /// The sparse file, for [`Checkpoint::survey`] and [`Checkpoint::open`]. It lives as long as this.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Bytes that came from the server, and bytes of the whole file.
    pub fn fetched(&self) -> (u64, u64) {
        (self.fetched, self.total)
    }

    /// Brings the storages of the tensors `wanted` says yes to; a [`Checkpoint`] opened before does not know their places.
    ///
    /// # Errors
    /// [`FetchError::Source`] when the server fails, or an entry's checksum differs.
    pub fn bring(
        &mut self,
        wanted: impl Fn(&[String]) -> bool + Send,
        events: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), FetchError> {
        attended(events, |caller| self.take(wanted, caller))
    }

    /// [`Remote::bring`], within work that has a caller already.
    pub(super) fn take(&mut self, wanted: impl Fn(&[String]) -> bool, caller: &Caller) -> Result<(), FetchError> {
        let storages = self.storages(wanted)?;
        self.bring_entries(&storages, caller)
    }

    /// Bytes that [`Remote::bring`] would fetch.
    ///
    /// # Errors
    /// [`FetchError::Source`] when a tensor does not lie in one piece.
    pub fn cost(&self, wanted: impl Fn(&[String]) -> bool) -> Result<u64, FetchError> {
        let storages = self.storages(wanted)?;
        Ok(storages.iter().map(|&entry| (self.entries[entry].end - self.entries[entry].listed.header) as u64).sum())
    }

    fn storages(&self, wanted: impl Fn(&[String]) -> bool) -> Result<BTreeSet<usize>, FetchError> {
        let checkpoint = self.checkpoint()?;
        let mut storages = BTreeSet::new();
        for tensor in checkpoint.tensors().iter().filter(|tensor| wanted(&tensor.path)) {
            let Some(span) = checkpoint.span(tensor) else {
                let reason = format!("`{}` does not lie in one piece; fetch all of the file", tensor.path.join("."));
                return Err(FetchError::Source { address: address::shown(&self.address), reason });
            };
            let offset = span.offset as usize;
            // What is here already has its real header, so its data end before the next entry all the same.
            let entry = self.entries.partition_point(|entry| entry.listed.header <= offset).checked_sub(1);
            storages.extend(entry.filter(|&entry| span.len > 0 && !self.entries[entry].here));
        }
        Ok(storages)
    }

    fn checkpoint(&self) -> Result<Checkpoint, FetchError> {
        Checkpoint::open(self.path()).map_err(|error| ConvertError::from(error).into())
    }

    fn read_directory(&mut self, caller: &Caller) -> Result<(), FetchError> {
        let tail = self.total.saturating_sub(TAIL);
        self.bring_range(tail..self.total, caller)?;
        // Where the directory begins is in the tail, even if the directory is not.
        let start = self.with_bytes(zip::directory_start)? as u64;
        if self.total - start > MAX_DIRECTORY {
            let reason = format!("its directory is larger than {MAX_DIRECTORY} bytes");
            return Err(FetchError::Source { address: address::shown(&self.address), reason });
        }
        if start < tail {
            self.bring_range(start..tail, caller)?;
        }
        let mut listed = self.with_bytes(zip::listing)?;
        listed.sort_by_key(|entry| entry.header);
        let ends: Vec<usize> = listed.iter().skip(1).map(|next| next.header).chain([start as usize]).collect();
        self.entries = listed.into_iter().zip(ends).map(|(listed, end)| Entry { listed, end, here: false }).collect();
        Ok(())
    }

    fn with_bytes<T>(
        &self,
        read: impl FnOnce(&[u8]) -> Result<T, crate::checkpoint::CheckpointError>,
    ) -> Result<T, FetchError> {
        // SAFETY: the map is read once, here, and nobody else writes this file.
        let map = unsafe { memmap2::Mmap::map(self.file.as_file()) }.map_err(FetchError::io("map", self.path()))?;
        read(&map).map_err(|error| ConvertError::from(error).into())
    }

    /// Brings everything that is no storage; storages get their stand-ins.
    fn read_small_entries(&mut self, caller: &Caller) -> Result<(), FetchError> {
        let cramped = |entry: &Entry| FetchError::Source {
            address: address::shown(&self.address),
            reason: format!("entry `{}` has no room before the next one: the archive is damaged", entry.listed.name),
        };
        let mut small = BTreeSet::new();
        let mut unseen = 0_usize;
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.stand_in().end > entry.end {
                return Err(cramped(entry));
            }
            if entry.is_storage() {
                let header = stand_in_header(&entry.listed.name);
                positioned::write_at(self.file.as_file(), &header, entry.listed.header as u64)
                    .map_err(FetchError::io("write", self.path()))?;
            } else {
                unseen += entry.end - entry.listed.header;
                small.insert(index);
            }
        }
        if unseen > MAX_PICKLE {
            let reason = format!("its pickle is larger than {MAX_PICKLE} bytes");
            return Err(FetchError::Source { address: address::shown(&self.address), reason });
        }
        self.bring_entries(&small, caller)
    }

    /// Brings whole entries and compares their checksums.
    fn bring_entries(&mut self, wanted: &BTreeSet<usize>, caller: &Caller) -> Result<(), FetchError> {
        // Neighbours come together.
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for &index in wanted {
            let entry = &self.entries[index];
            let (start, end) = (entry.listed.header as u64, entry.end as u64);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        self.bring_ranges(&ranges, caller)?;
        let check = |entry: &Entry| -> std::io::Result<bool> {
            let mut header = [0; LOCAL_HEADER];
            positioned::read_at(self.file.as_file(), &mut header, entry.listed.header as u64)?;
            let lengths = [26, 28].map(|at| usize::from(u16::from_le_bytes([header[at], header[at + 1]])));
            let start = entry.listed.header + LOCAL_HEADER + lengths[0] + lengths[1];
            if start + entry.listed.size > entry.end {
                return Ok(false);
            }
            let mut data = vec![0; entry.listed.size];
            positioned::read_at(self.file.as_file(), &mut data, start as u64)?;
            let mut crc = flate2::Crc::new();
            crc.update(&data);
            // torch can be told to leave checksums out; they are 0 then.
            Ok(entry.listed.checksum == 0 || crc.sum() == entry.listed.checksum)
        };
        for &index in wanted {
            caller.check()?;
            let entry = &self.entries[index];
            if !check(entry).map_err(FetchError::io("read", self.path()))? {
                let reason = format!("entry `{}` arrived damaged: its checksum differs", entry.listed.name);
                return Err(FetchError::Source { address: address::shown(&self.address), reason });
            }
            self.entries[index].here = true;
        }
        Ok(())
    }

    fn bring_range(&mut self, range: Range<u64>, caller: &Caller) -> Result<(), FetchError> {
        self.bring_ranges(&[range], caller)
    }

    /// Brings byte ranges to their places, several at once.
    fn bring_ranges(&mut self, ranges: &[Range<u64>], caller: &Caller) -> Result<(), FetchError> {
        let mut pieces = Vec::new();
        for range in ranges {
            let cuts = (range.start..range.end).step_by(PIECE as usize);
            pieces.extend(cuts.map(|start| start..range.end.min(start + PIECE)));
        }
        let asked: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        let all = self.fetched + asked;
        let (next, have) = (AtomicUsize::new(0), AtomicU64::new(self.fetched));
        let failed = Mutex::new(None);
        let this = &*self;
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.clamp(1, 64).min(pieces.len()) {
                scope.spawn(|| {
                    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let mut at = piece.start;
                        let result = Patience::new(this.options).repeating(caller, |patience| {
                            let before = at;
                            let result = this.piece(piece, &mut at, caller, |read| {
                                caller.progress(have.fetch_add(read, Ordering::Relaxed) + read, Some(all));
                            });
                            // What has come is kept, so the next attempt goes on from there; a drip is no progress.
                            if at - before >= (piece.end - piece.start) / 16 {
                                patience.progressed();
                            }
                            result
                        });
                        if let Err(failure) = result {
                            // The rest would be for nothing.
                            next.store(pieces.len(), Ordering::Relaxed);
                            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(failure);
                        }
                    }
                });
            }
        });
        if let Some(failure) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(source_error(&self.address, failure));
        }
        self.fetched = all;
        Ok(())
    }

    /// Brings what is missing of `piece` from `at` on, and tells `got` of each part of it.
    fn piece(&self, piece: &Range<u64>, at: &mut u64, caller: &Caller, got: impl Fn(u64)) -> Result<(), Failure> {
        let asked = (*at, piece.end - 1);
        let mut reply = self.http.get(&self.address, Some(asked), Some(&self.validator), caller)?;
        if reply.range != Some((asked.0, asked.1, self.total)) || reply.validator.contradicts(&self.validator) {
            return Err(Failure::Changed("the file changed on the server while it was read".into()));
        }
        let mut body = (&mut reply.body).take(piece.end - *at);
        let (mut buffer, mut window) = (vec![0; 128 << 10], (Instant::now(), 0));
        while *at < piece.end {
            let read = read_some(&mut body, &mut buffer, caller)?;
            if read == 0 {
                return Err(Failure::transient(format!("the connection ended {} bytes early", piece.end - *at)));
            }
            positioned::write_at(self.file.as_file(), &buffer[..read], *at)
                .map_err(|error| Failure::Local(FetchError::write(self.path(), piece.end - *at)(error)))?;
            *at += read as u64;
            got(read as u64);
            window.1 += read as u64;
            stalled(&mut window, self.options)?;
        }
        Ok(())
    }
}

/// A local header with the name and nothing else.
fn stand_in_header(name: &str) -> Vec<u8> {
    let mut header = vec![0; LOCAL_HEADER];
    header[..4].copy_from_slice(zip::LOCAL);
    // The directory had the length in 16 bits too.
    header[26..28].copy_from_slice(&(name.len() as u16).to_le_bytes());
    header.extend_from_slice(name.as_bytes());
    header
}

fn source_error(url: &str, failure: Failure) -> FetchError {
    match failure {
        Failure::Local(error) => error,
        Failure::Refused(reason) | Failure::Changed(reason) | Failure::Transient { reason, .. } => {
            FetchError::Source { address: address::shown(url), reason }
        }
    }
}
