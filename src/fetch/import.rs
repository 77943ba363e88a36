//! A file that was got some other way, recognised as one of a model's sources.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::board::{Hasher, Hashes};
use super::caller::Caller;
use super::{Event, FetchError, Options};
use crate::zoo::{Digest, Manifest, Source};

/// Where to take a model's file from, in place of its sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file on this machine.
    File(PathBuf),
    /// An address.
    Url(String),
}

/// Where other tools may have put a source's file.
pub(super) fn elsewhere(source: &Source, options: &Options) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = options.torch_hub.iter().map(|hub| hub.join(source.file_name())).collect();
    if let (Some(cache), Some(repository), Some(file)) = (&options.hugging_face, &source.hub, &source.file) {
        let snapshots = cache.join(format!("models--{}", repository.replace('/', "--"))).join("snapshots");
        let revisions = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
        paths.extend(revisions.map(|revision| revision.path().join(file)));
    }
    paths.retain(|path| path.is_file());
    paths
}

/// Reads `path`: its hashes (without leaves) and size.
pub(super) fn hash_file(path: &Path, caller: &Caller) -> Result<(Hashes, u64), FetchError> {
    let io = || FetchError::io("read", path);
    let mut file = File::open(path).map_err(io())?;
    let total = file.metadata().map_err(io())?.len();
    caller.tell(Event::Reading { path: path.display().to_string() });
    let (mut hasher, mut bytes, mut buffer) = (Hasher::new(true), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io())? {
            0 => return Ok((hasher.finish(Vec::new()), bytes)),
            read => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
                caller.progress(bytes, Some(total));
                caller.check()?;
            }
        }
    }
}

/// The source of `manifest` that a file with these hashes is; `name` decides only between sources without a hash.
///
/// # Errors
/// [`FetchError::Foreign`] when it is none of them.
pub(super) fn recognise<'a>(
    manifest: &'a Manifest,
    shown: &str,
    name: &str,
    hashes: &Hashes,
    bytes: u64,
) -> Result<&'a Source, FetchError> {
    let accepts = |digest: &Digest| {
        digest.accepts_sha256(&hashes.sha256) && hashes.md5.as_ref().is_none_or(|md5| digest.accepts_md5(md5))
    };
    let sized = |source: &&Source| source.bytes.is_none_or(|published| published == bytes);
    let proven = |source: &&Source| !source.hashes.is_empty() && source.hashes.iter().all(accepts);
    if let Some(source) = manifest.sources.iter().filter(sized).find(proven) {
        return Ok(source);
    }
    let mut open = manifest.sources.iter().filter(|source| source.hashes.is_empty()).filter(sized);
    let only = manifest.sources.len() == 1;
    open.find(|source| only || source.file_name() == name).ok_or_else(|| {
        let line = |source: &Source| match source.hashes.as_slice() {
            [] => format!("  expected a file called {} (no hash is published)", source.file_name()),
            hashes => {
                let hashes: Vec<String> = hashes.iter().map(Digest::to_string).collect();
                format!("  expected {}", hashes.join(" and "))
            }
        };
        let expected: Vec<String> = manifest.sources.iter().map(line).collect();
        FetchError::Foreign {
            path: shown.to_owned(),
            model: manifest.name.clone(),
            sha256: hashes.sha256.clone(),
            expected: expected.join("\n"),
        }
    })
}
