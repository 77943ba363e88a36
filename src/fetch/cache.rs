//! What is in the store: listing it, reading it all again, repairing, cleaning up.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::caller::attended;
use super::download::{Wanted, download};
use super::http::Http;
use super::pins::Pins;
use super::retry::Failure;
use super::store::State;
use super::{Blob, Event, FetchError, Options, Store};
use crate::zoo::{Digest, Zoo};

/// Age at which a temporary file is nobody's.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// What a thing in the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// A model in the common format.
    Model,
    /// A file as it was fetched.
    Source,
    /// A download that was interrupted.
    Partial,
    /// What a process that ended early left behind.
    Leftover,
}

/// One thing in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// What it is.
    pub sort: Sort,
    /// Model name, or sha256, or file name.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Where.
    pub path: PathBuf,
}

/// Health of one model or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Which.
    pub entry: Entry,
    /// Damaged parts: byte ranges of a source, files of a model. Empty: whole.
    pub damage: Vec<String>,
}

/// Everything in the store, models first.
///
/// # Errors
/// [`FetchError::Io`] when a folder cannot be read.
pub fn ls(store: &Store) -> Result<Vec<Entry>, FetchError> {
    let mut entries = Vec::new();
    for (folder, sort) in [("models", Sort::Model), ("blobs", Sort::Source), ("partial", Sort::Partial)] {
        for (name, path) in children(&store.home().join(folder))? {
            let sort = match sort {
                Sort::Partial if !name.ends_with(".part") => Sort::Leftover,
                _ if name.starts_with('.') => Sort::Leftover,
                sort => sort,
            };
            entries.push(Entry { sort, name, bytes: size(&path), path });
        }
    }
    entries.sort();
    Ok(entries)
}

/// Reads every model and file again and compares it with its chunk hashes.
///
/// # Errors
/// [`FetchError::Io`] when something cannot be read at all, [`FetchError::Interrupted`] when `events` said stop.
pub fn verify(store: &Store, events: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Vec<Health>, FetchError> {
    attended(events, |caller| {
        let mut healths = Vec::new();
        for entry in ls(store)? {
            let damage = match entry.sort {
                Sort::Model => {
                    let damaged = store.verify_model(&entry.name, caller)?;
                    damaged.unwrap_or_else(|| vec!["no chunk hashes".to_owned()])
                }
                Sort::Source => match store.verify_blob(&entry.name, caller)? {
                    State::Whole => Vec::new(),
                    State::Missing => continue,
                    State::Damaged(leaves) => ranges(store, &entry.name, &leaves),
                },
                Sort::Partial | Sort::Leftover => continue,
            };
            healths.push(Health { entry, damage });
        }
        Ok(healths)
    })
}

/// Fetches what is damaged of a source file, and only that, from where it can be had.
///
/// # Errors
/// [`FetchError::Unrepairable`] when no address is known for it; otherwise the last source's failure.
pub fn repair(
    store: &Store,
    zoo: &Zoo,
    sha256: &str,
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Blob, FetchError> {
    let http = Http::new(options).map_err(|failure| match failure {
        Failure::Local(error) => error,
        _ => FetchError::Unrepairable { sha256: sha256.to_owned() },
    })?;
    attended(events, |caller| {
        let mut last = FetchError::Unrepairable { sha256: sha256.to_owned() };
        for address in addresses(store, zoo, sha256, options)? {
            if options.offline {
                return Err(FetchError::Offline { model: sha256.to_owned() });
            }
            caller.tell(Event::Source { address: super::address::shown(&address) });
            let hashes = vec![Digest::Sha256(sha256.to_owned())];
            let wanted = Wanted { address, hashes, bytes: None, pinned: None };
            match download(store, &http, &wanted, 0, options, caller) {
                Err(error) if !error.is_local() => last = error,
                other => return other,
            }
        }
        Err(last)
    })
}

/// Removes what can be made or fetched again: interrupted downloads, fetched files, leftovers. Models stay, and so does
/// what a running process works on.
///
/// # Errors
/// [`FetchError::Io`] when something cannot be removed.
pub fn prune(store: &Store) -> Result<Vec<Entry>, FetchError> {
    let busy: Vec<String> = children(&store.home().join("locks"))?.into_iter().map(|(name, _)| name).collect();
    let mut removed = Vec::new();
    for entry in ls(store)? {
        let idle = match entry.sort {
            Sort::Model => false,
            // A part and its lock have the same name.
            Sort::Partial => !busy.contains(&entry.name.replace(".part", ".lock")),
            // Whose these are cannot be told.
            Sort::Source => busy.is_empty(),
            Sort::Leftover => busy.is_empty() && is_old(&entry.path),
        };
        if !idle {
            continue;
        }
        if entry.sort == Sort::Source {
            store.discard(&entry.name);
        } else if entry.path.is_dir() {
            std::fs::remove_dir_all(&entry.path).map_err(FetchError::io("remove", &entry.path))?;
        } else {
            remove_file(&entry.path)?;
            remove_file(&entry.path.with_extension("journal"))?;
        }
        removed.push(entry);
    }
    Ok(removed)
}

/// Whether nobody has written to it for a while.
fn is_old(path: &Path) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > LEFTOVER_AGE))
}

fn remove_file(path: &Path) -> Result<(), FetchError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FetchError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Every address a file with this hash can be had from.
fn addresses(store: &Store, zoo: &Zoo, sha256: &str, options: &Options) -> Result<Vec<String>, FetchError> {
    let mut addresses = Vec::new();
    for manifest in zoo.iter() {
        let exact = Digest::Sha256(sha256.to_owned());
        let sources = manifest.sources.iter().filter(|source| source.hashes.contains(&exact));
        for address in sources.map(|source| source.address(options.hub.as_deref())) {
            addresses.extend(options.mirror.iter().filter_map(|mirror| super::address::mirrored(mirror, &address)));
            addresses.push(address);
        }
        let pins = Pins::load(&store.pins_path(&manifest.name))?;
        addresses.extend(pins.addresses(sha256).map(str::to_owned));
    }
    Ok(addresses)
}

/// Damaged leaves as byte ranges, neighbours joined.
fn ranges(store: &Store, sha256: &str, leaves: &[usize]) -> Vec<String> {
    let Some(tree) = store.tree(sha256) else { return vec!["all of it".to_owned()] };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &leaf in leaves {
        let begin = tree.chunk * leaf as u64;
        let end = begin + tree.leaf_len(leaf);
        match ranges.last_mut() {
            Some(last) if last.1 == begin => last.1 = end,
            _ => ranges.push((begin, end)),
        }
    }
    ranges.into_iter().map(|(begin, end)| format!("bytes {begin}-{}", end - 1)).collect()
}

fn children(folder: &Path) -> Result<Vec<(String, PathBuf)>, FetchError> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(FetchError::io("read", folder))? {
        let entry = entry.map_err(FetchError::io("read", folder))?;
        children.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(children)
}

fn size(path: &Path) -> u64 {
    if path.is_dir() {
        return children(path).unwrap_or_default().iter().map(|(_, child)| size(child)).sum();
    }
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
