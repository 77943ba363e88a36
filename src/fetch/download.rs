//! One file from one address into the store: probe, fetch, verify, adopt.

use std::path::Path;

use super::board::{self, Hashes, Job};
use super::caller::Caller;
use super::http::{Http, Reply, Validator};
use super::part::{Head, Part};
use super::retry::{Failure, Patience};
use super::store::State;
use super::stream::{self, Limits};
use super::tree::{CHUNKS, hex, sha256, unhex};
use super::{Blob, Event, FetchError, Options, Store, address};
use crate::zoo::Digest;

/// Times a download is begun anew because the file behind the address changed.
const MAX_RESTARTS: usize = 2;

/// A file, as far as it is known before it is there.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Where it is asked for.
    pub address: String,
    /// Its published hashes; all must agree.
    pub hashes: Vec<Digest>,
    /// Its published size.
    pub bytes: Option<u64>,
    /// Its sha256 when it was first fetched, and the file that says so.
    pub pinned: Option<(String, String)>,
}

impl Wanted {
    /// The whole sha256, when it is known.
    pub(super) fn sha256(&self) -> Option<&str> {
        let published = self.hashes.iter().find_map(|digest| match digest {
            Digest::Sha256(hex) => Some(hex.as_str()),
            _ => None,
        });
        published.or(self.pinned.as_ref().map(|(pin, _)| pin.as_str()))
    }

    /// Compares what was computed with all that is known.
    pub(super) fn check(&self, origin: &str, hashes: &Hashes, bytes: u64) -> Result<(), FetchError> {
        let Hashes { sha256, md5, .. } = hashes;
        let accepts =
            |digest: &Digest| digest.accepts_sha256(sha256) && md5.as_ref().is_none_or(|md5| digest.accepts_md5(md5));
        if !self.hashes.iter().all(accepts) {
            return Err(FetchError::Hash {
                origin: origin.to_owned(),
                expected: self.hashes.clone(),
                sha256: sha256.clone(),
                md5: md5.clone(),
                bytes,
            });
        }
        match &self.pinned {
            Some((pinned, pins)) if pinned != sha256 => Err(FetchError::Pin {
                origin: origin.to_owned(),
                pinned: pinned.clone(),
                sha256: sha256.clone(),
                pins: pins.clone(),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn needs_md5(&self) -> bool {
        self.hashes.iter().any(Digest::is_md5)
    }
}

/// What the first question to a server found.
enum Probe<'a> {
    /// It does ranges.
    Ranged { total: u64, validator: Validator },
    /// It does not: this is the whole file.
    Whole(Box<Reply<'a>>),
}

/// Fetches `wanted` into the store. `beyond` bytes of disk are needed after it.
///
/// # Errors
/// [`FetchError`]; what was fetched of a file that may still be right is kept for the next time.
pub(super) fn download(
    store: &Store,
    http: &Http<'_>,
    wanted: &Wanted,
    beyond: u64,
    options: &Options,
    caller: &Caller,
) -> Result<Blob, FetchError> {
    let key = wanted.sha256().unwrap_or(&wanted.address);
    let _lock = store.lock(key, options.stale_lock, caller)?;
    if let Some(sha256) = wanted.sha256() {
        match store.state(sha256, caller)? {
            State::Whole => return store.find(sha256, caller)?.ok_or_else(|| vanished(&store.blob_path(sha256))),
            // What is whole of it need not be fetched.
            State::Damaged(damage) => demote(store, sha256, &damage)?,
            State::Missing => {}
        }
    }
    let download = Download { store, http, wanted, beyond, options, caller };
    let mut restarts = 0;
    loop {
        let reason = match download.once(restarts > 0) {
            Ok(blob) => return Ok(blob),
            Err(Failure::Local(error)) => return Err(error),
            // A part that was begun earlier, or elsewhere, may be what is wrong with it: once from scratch.
            Err(Failure::Changed(reason)) if restarts < MAX_RESTARTS => reason,
            Err(Failure::Changed(reason) | Failure::Refused(reason) | Failure::Transient { reason, .. }) => {
                return Err(FetchError::Source { address: address::shown(&wanted.address), reason });
            }
        };
        restarts += 1;
        Part::remove(&store.part_path(key))?;
        caller.tell(Event::Restart { reason });
    }
}

fn vanished(path: &Path) -> FetchError {
    FetchError::io("read", path)(std::io::ErrorKind::NotFound.into())
}

/// Makes a damaged file a download in progress that lacks only the damaged leaves.
fn demote(store: &Store, sha256: &str, damage: &[usize]) -> Result<(), FetchError> {
    let (blob, part) = (store.blob_path(sha256), store.part_path(sha256));
    let Some(tree) = store.tree(sha256) else {
        // Nothing says where it is damaged.
        return std::fs::remove_file(&blob).map_err(FetchError::io("remove", &blob));
    };
    let leaves = tree.leaves.iter().enumerate();
    let leaves = leaves.map(|(index, leaf)| unhex(leaf).filter(|_| !damage.contains(&index))).collect();
    Part::remove(&part)?;
    std::fs::rename(&blob, &part).map_err(FetchError::io("rename", &blob))?;
    let head = Head { total: tree.bytes, chunk: tree.chunk, source: None, etag: None, modified: None, boot: None };
    Part::of_damaged(&part, head, leaves)
}

/// What came of the first question.
enum Ranged {
    /// Size and state of a file that comes in parts.
    Yes(u64, Validator),
    /// It came in one piece.
    No(Blob),
}

struct Download<'a> {
    store: &'a Store,
    http: &'a Http<'a>,
    wanted: &'a Wanted,
    beyond: u64,
    options: &'a Options,
    caller: &'a Caller,
}

impl<'a> Download<'a> {
    fn once(&self, fresh: bool) -> Result<Blob, Failure> {
        let ranged = Patience::new(self.options).repeating(self.caller, |_| match self.probe()? {
            Probe::Ranged { total, validator } => Ok(Ranged::Yes(total, validator)),
            Probe::Whole(reply) => self.whole(*reply).map(Ranged::No),
        })?;
        match ranged {
            Ranged::Yes(total, validator) => self.ranged(total, &validator, fresh),
            Ranged::No(blob) => Ok(blob),
        }
    }

    fn get(&self, range: Option<(u64, u64)>) -> Result<Reply<'a>, Failure> {
        self.http.get(&self.wanted.address, range, None, self.caller)
    }

    fn probe(&self) -> Result<Probe<'a>, Failure> {
        let reply = match self.get(Some((0, 0))) {
            // No first byte: some servers refuse ranges this way, others have an empty file. The whole will tell.
            Err(Failure::Changed(_)) => self.get(None).map_err(|failure| match failure {
                Failure::Changed(reason) => Failure::Refused(reason),
                other => other,
            })?,
            other => other?,
        };
        match reply.range {
            Some((0, _, total)) if reply.encoding.is_none() => {
                // Without any way to tell one state of the file from another, parts might be of different states.
                if reply.validator.is_some() || self.wanted.sha256().is_some() {
                    return Ok(Probe::Ranged { total, validator: reply.validator });
                }
                Ok(Probe::Whole(Box::new(self.get(None)?)))
            }
            Some(_) => Ok(Probe::Whole(Box::new(self.get(None)?))),
            None => Ok(Probe::Whole(Box::new(reply))),
        }
    }

    /// Checks a size the server names, and that there is room for `missing` bytes of it.
    fn admit(&self, total: Option<u64>, missing: Option<u64>) -> Result<(), Failure> {
        if let Some(total) = total {
            match self.wanted.bytes {
                Some(bytes) if bytes != total => {
                    return Err(Failure::Refused(format!(
                        "the server has {total} bytes; the published file has {bytes}"
                    )));
                }
                None if total > self.options.max_bytes => {
                    return Err(Failure::Refused(format!(
                        "{total} bytes are more than the {} accepted",
                        self.options.max_bytes
                    )));
                }
                _ if total == 0 => return Err(Failure::Refused("the file is empty".into())),
                _ => {}
            }
        }
        let needed = missing.unwrap_or(0).saturating_add(self.beyond);
        self.store.admit(needed, self.options).map_err(Failure::Local)
    }

    fn ranged(&self, total: u64, validator: &Validator, fresh: bool) -> Result<Blob, Failure> {
        self.admit(Some(total), None)?;
        let known = self.wanted.sha256();
        let key = known.unwrap_or(&self.wanted.address);
        let path = self.store.part_path(key);
        let head = Head {
            total,
            chunk: self.options.chunk.clamp(*CHUNKS.start(), *CHUNKS.end()),
            source: known.is_none().then(|| hex(&sha256(self.wanted.address.as_bytes()))),
            etag: validator.etag.clone().filter(|_| known.is_none()),
            modified: validator.modified.clone().filter(|_| known.is_none()),
            boot: None,
        };
        let mut part = Part::open(&path, head, self.caller).map_err(Failure::Local)?;
        let resumed = part.have();
        self.admit(None, Some(total - resumed))?;
        if resumed > 0 {
            self.caller.tell(Event::Resumed { have: resumed, total });
        }
        let job = Job {
            http: self.http,
            options: self.options,
            address: &self.wanted.address,
            validator,
            md5: self.wanted.needs_md5(),
        };
        let hashes = board::download(&job, &mut part, self.caller)?;
        if let Err(error) = self.wanted.check(&address::shown(&self.wanted.address), &hashes, total) {
            Part::remove(&path).map_err(Failure::Local)?;
            // Only bytes this very run did not fetch are worth a second try.
            return Err(match resumed > 0 && !fresh {
                true => Failure::Changed("what an earlier run had fetched does not fit the published hash".into()),
                false => Failure::Local(error),
            });
        }
        let chunk = part.head.chunk;
        drop(part);
        let blob = self.adopt(&path, &hashes, chunk, total)?;
        Part::forget_journal(&path);
        Ok(blob)
    }

    fn whole(&self, reply: Reply<'_>) -> Result<Blob, Failure> {
        let known = self.wanted.bytes.is_some() || !self.wanted.hashes.is_empty() || self.wanted.pinned.is_some();
        if !reply.delimited && !known {
            let reason = "the server does not say how long the file is, and neither size nor hash is published";
            return Err(Failure::Refused(reason.into()));
        }
        if let Some((first, last, total)) = reply.range
            && (first, last) != (0, total - 1)
        {
            return Err(Failure::transient(format!(
                "asked for the whole file, the server sent {first}-{last} of {total}"
            )));
        }
        self.admit(reply.length, reply.length.or(self.wanted.bytes))?;
        let path = self.store.part_path(self.wanted.sha256().unwrap_or(&self.wanted.address));
        Part::remove(&path).map_err(Failure::Local)?;
        let limits = Limits { published: self.wanted.bytes, most: self.wanted.bytes.unwrap_or(self.options.max_bytes) };
        let md5 = self.wanted.needs_md5();
        let received = stream::receive(reply, &path, limits, md5, self.options, self.caller);
        let checked = received.and_then(|(hashes, bytes)| {
            self.wanted.check(&address::shown(&self.wanted.address), &hashes, bytes).map_err(Failure::Local)?;
            Ok((hashes, bytes))
        });
        match checked {
            Ok((hashes, bytes)) if bytes > 0 => self.adopt(&path, &hashes, self.options.chunk, bytes),
            other => {
                Part::remove(&path).map_err(Failure::Local)?;
                Err(other.err().unwrap_or_else(|| Failure::Refused("the file is empty".into())))
            }
        }
    }

    fn adopt(&self, path: &Path, hashes: &Hashes, chunk: u64, bytes: u64) -> Result<Blob, Failure> {
        let blob = self.store.adopt(path, &hashes.sha256, chunk, &hashes.leaves).map_err(Failure::Local)?;
        self.caller.tell(Event::Verified { sha256: hashes.sha256.clone(), bytes });
        Ok(blob)
    }
}
