//! Chosen models as one archive, for a site without a network.
//!
//! A plain tar: first `tec-zoo-bundle.json`, which lists every file with size and sha256, then those files in that order
//! as `<model>/<file>`. Two bundles of the same models are the same bytes: sorted, no dates, no owners.
//!
//! Reading believes nothing: only listed names in the listed order, of the listed sizes, regular files all; a name is a
//! model's and one of the common format's files or it is refused, so nothing is written outside the store. A model gets
//! its name when every hash was right and the catalogue's own check holds. Who made the bundle is another matter: compare
//! its sha256 by another way than the bundle came.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::caller::{Caller, attended};
use super::make::{Fresh, place, remember, same_architecture};
use super::model::present;
use super::tree::hex;
use super::{Event, FetchError, Fetched, Options, Store};
use crate::destination::Destination;
use crate::hint::{Command, Hint};
use crate::model::{Canonical, ModelFile};
use crate::zoo::{Digest, Manifest, Zoo, is_name, register};

const INDEX: &str = "tec-zoo-bundle.json";
const FORMAT: u32 = 1;
/// Bounds on what is read before anything is known.
const MAX_INDEX: u64 = 16 << 20;
const MAX_MODELS: usize = 10_000;
const BUFFER: usize = 1 << 20;
/// A bundle that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bundled {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its sha256, to be compared on the other side.
    pub sha256: String,
    /// What it holds, sorted.
    pub models: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: u32,
    models: Vec<Packed>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    name: String,
    files: Vec<PackedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackedFile {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Packs models (name and directory in the common format) into `out`, which appears whole or not at all. A model of the
/// store is compared with its chunk hashes first.
///
/// # Errors
/// [`FetchError::Unpackable`] for a damaged model or one that changes meanwhile; [`FetchError::Destination`] when `out` is
/// taken; [`FetchError::Io`] when it cannot be written; [`FetchError::Interrupted`] when `events` said stop.
pub fn bundle(
    store: &Store,
    models: &[(String, PathBuf)],
    out: impl Into<Destination>,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Bundled, FetchError> {
    let out = out.into();
    attended(events, |caller| write(store, models, &out, caller))
}

fn write(
    store: &Store,
    models: &[(String, PathBuf)],
    out: &Destination,
    caller: &Caller,
) -> Result<Bundled, FetchError> {
    out.check_file()?;
    let mut models = models.to_vec();
    models.sort();
    models.dedup();
    let mut index = Index { format: FORMAT, models: Vec::new() };
    for (name, dir) in &models {
        index.models.push(pack(store, name, dir, caller)?);
    }
    let total: u64 = index.models.iter().flat_map(|model| &model.files).map(|file| file.bytes).sum();
    let io = || FetchError::io("write", out.path());
    let mut staged = out.file_output()?;
    let mut tar = Counted { file: staged.file(), hash: Sha256::new(), bytes: 0 };
    let text = serde_json::to_vec(&index).map_err(|error| io()(error.into()))?;
    head(&mut tar, INDEX, text.len() as u64).and_then(|()| tar.write_all(&text)).map_err(io())?;
    pad(&mut tar, text.len() as u64).map_err(io())?;
    for (packed, (_, dir)) in index.models.iter().zip(&models) {
        for file in &packed.files {
            head(&mut tar, &format!("{}/{}", packed.name, file.name), file.bytes).map_err(io())?;
            let path = dir.join(&file.name);
            let mut hash = Sha256::new();
            let copied = each(&path, caller, |piece| {
                hash.update(piece);
                caller.progress(tar.bytes.min(total), Some(total));
                tar.write_all(piece).map_err(io())
            })?;
            if copied != file.bytes || hex(&hash.finalize().into()) != file.sha256 {
                let reason = format!("`{}` changed while it was read", path.display());
                return Err(FetchError::Unpackable { model: packed.name.clone(), reason, hint: None });
            }
            pad(&mut tar, file.bytes).map_err(io())?;
        }
    }
    tar.write_all(&[0; 1024]).map_err(io())?;
    let (sha256, bytes) = (hex(&tar.hash.finalize().into()), tar.bytes);
    staged.commit()?;
    let models = index.models.into_iter().map(|model| model.name).collect();
    Ok(Bundled { path: out.path().to_path_buf(), bytes, sha256, models })
}

fn pack(store: &Store, name: &str, dir: &Path, caller: &Caller) -> Result<Packed, FetchError> {
    let unpackable = |reason: String, hint| FetchError::Unpackable { model: name.to_owned(), reason, hint: Some(hint) };
    if !is_name(name) {
        let register = Command::new("register").word("DIR").set("name", "NAME");
        return Err(unpackable("it needs a name".to_owned(), Hint::new().command(register).words(" gives it one")));
    }
    if *dir == store.model_dir(name)
        && let Some(damaged) = store.verify_model(name, caller)?.filter(|damaged| !damaged.is_empty())
    {
        let damaged = damaged.join(", ");
        let fetch = Command::new("fetch").word(name.to_owned());
        return Err(unpackable(format!("{damaged} damaged"), Hint::new().command(fetch).words(" makes it anew")));
    }
    Canonical::open(dir)?;
    caller.tell(Event::Reading { path: dir.display().to_string() });
    let mut files = Vec::new();
    for file in ModelFile::ALL {
        let path = dir.join(file.name());
        if path.is_file() {
            let mut hash = Sha256::new();
            let bytes = each(&path, caller, |piece| {
                hash.update(piece);
                Ok(())
            })?;
            files.push(PackedFile { name: file.name().to_owned(), bytes, sha256: hex(&hash.finalize().into()) });
        }
    }
    Ok(Packed { name: name.to_owned(), files })
}

/// Hands over a file in pieces; its size.
fn each(
    path: &Path,
    caller: &Caller,
    mut each: impl FnMut(&[u8]) -> Result<(), FetchError>,
) -> Result<u64, FetchError> {
    let io = || FetchError::io("read", path);
    let mut file = File::open(path).map_err(io())?;
    let (mut buffer, mut bytes) = (vec![0; BUFFER], 0);
    loop {
        caller.check()?;
        match file.read(&mut buffer).map_err(io())? {
            0 => return Ok(bytes),
            read => each(&buffer[..read])?,
        }
        bytes = file.stream_position().map_err(io())?;
    }
}

struct Counted<'a> {
    file: &'a mut File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn head(out: &mut impl Write, name: &str, bytes: u64) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    out.write_all(header.as_bytes())
}

fn pad(out: &mut impl Write, bytes: u64) -> std::io::Result<()> {
    let rest = (bytes % 512) as usize;
    if rest > 0 { out.write_all(&[0; 512][rest..]) } else { Ok(()) }
}

/// Whether `path` is a bundle, by its first bytes.
///
/// # Errors
/// [`FetchError::Io`] when it cannot be read, or is no file: a pipe would be waited for without end.
pub fn is_bundle(path: &Path) -> Result<bool, FetchError> {
    let io = || FetchError::io("read", path);
    if !std::fs::metadata(path).map_err(io())?.is_file() {
        return Err(io()(std::io::Error::other("it is no file")));
    }
    let mut start = Vec::new();
    File::open(path).map_err(io())?.take(512).read_to_end(&mut start).map_err(io())?;
    Ok(start.starts_with(format!("{INDEX}\0").as_bytes()) && start.get(257..262) == Some(b"ustar"))
}

/// Takes models out of the bundle `path` into the store: those called `names`, or all. A model the catalogue does not know
/// is registered under its name.
///
/// # Errors
/// [`FetchError::Bundle`] says what is wrong with the bundle, [`FetchError::Structure`] with a model of it; models that came
/// before are there, the one in question is not.
pub fn unbundle(
    store: &Store,
    zoo: &Zoo,
    path: &Path,
    names: &[String],
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<(String, Fetched)>, FetchError> {
    attended(events, |caller| read(store, zoo, path, names, options, caller))
}

fn read(
    store: &Store,
    zoo: &Zoo,
    path: &Path,
    names: &[String],
    options: &Options,
    caller: &Caller,
) -> Result<Vec<(String, Fetched)>, FetchError> {
    let bad = |reason: String| FetchError::Bundle { path: path.display().to_string(), reason };
    let io = || FetchError::io("read", path);
    let mut file = File::open(path).map_err(io())?;
    let index = index(&mut file, path)?;
    if let Some(missing) = names.iter().find(|name| index.models.iter().all(|model| model.name != **name)) {
        let has: Vec<String> = index.models.iter().map(|model| format!("`{}`", model.name)).collect();
        return Err(FetchError::NotInBundle { model: missing.clone(), has: has.join(", ") });
    }
    let wanted = |model: &Packed| names.is_empty() || names.contains(&model.name);
    let needed: u64 = index.models.iter().filter(|model| wanted(model)).flat_map(|m| &m.files).map(|f| f.bytes).sum();
    store.admit(needed, options)?;
    let mut done = Vec::new();
    for model in &index.models {
        let known = zoo.get(&model.name).ok();
        let manifest = match (wanted(model), known) {
            (false, _) => {
                model.files.iter().try_for_each(|packed| skip(&mut file, model, packed)).map_err(bad)?;
                continue;
            }
            (true, Some(manifest)) if manifest.directory.is_none() => Some(manifest),
            (true, Some(manifest)) if manifest.directory != Some(store.model_dir(&model.name)) => {
                return Err(bad(format!("`{}` is registered here already", model.name)));
            }
            (true, _) => None,
        };
        let _lock = store.lock(&format!("model {}", model.name), options.stale_lock, caller)?;
        let there = match manifest {
            Some(manifest) => present(store, manifest, caller)?,
            None => None,
        };
        if let Some(there) = there {
            model.files.iter().try_for_each(|packed| skip(&mut file, model, packed)).map_err(bad)?;
            done.push((model.name.clone(), there));
            continue;
        }
        let fresh = Fresh::new(store, &model.name);
        std::fs::create_dir(&fresh.0).map_err(FetchError::io("make", &fresh.0))?;
        for packed in &model.files {
            extract(&mut file, path, model, packed, &fresh.0, needed, caller)?;
        }
        done.push((model.name.clone(), adopt(store, manifest, &model.name, &fresh, options, caller)?));
    }
    Ok(done)
}

/// A verified directory out of a bundle into its place.
fn adopt(
    store: &Store,
    manifest: Option<&Manifest>,
    name: &str,
    fresh: &Fresh,
    options: &Options,
    caller: &Caller,
) -> Result<Fetched, FetchError> {
    let config = Canonical::open(&fresh.0)?.config().clone();
    let sha256 = config.provenance.source_sha256;
    let dir = store.model_dir(name);
    let checked = match manifest {
        Some(manifest) => {
            let wrong = |reason: String| FetchError::Structure {
                origin: "the bundle".to_owned(),
                model: name.to_owned(),
                reason,
            };
            same_architecture(&config.vit, &manifest.vit).map_err(wrong)?;
            let published: Vec<&Digest> = manifest.sources.iter().flat_map(|source| &source.hashes).collect();
            let whole = |digest: &&&Digest| matches!(digest, Digest::Sha256(_) | Digest::Sha256Prefix(_));
            // A model of a source without a hash says nothing either way, so all of them must have one.
            let all = !manifest.sources.is_empty()
                && manifest.sources.iter().all(|source| source.hashes.iter().any(|digest| whole(&&digest)));
            if all && !published.iter().filter(whole).any(|digest| digest.accepts_sha256(&sha256)) {
                return Err(wrong(format!("it was made from sha256:{sha256}, which none of its sources is")));
            }
            Some(place(store, manifest, fresh, options, caller)?)
        }
        None => {
            store.replace_model(name, &fresh.0, options.chunk, caller)?;
            register(&store.overlay(), name, &dir, false)?;
            remember(store, name, caller);
            None
        }
    };
    Ok(Fetched { dir, cached: false, source_sha256: Some(sha256), address: None, checked, in_part: None })
}

/// Reads and judges the index.
fn index(file: &mut File, path: &Path) -> Result<Index, FetchError> {
    let bad = |reason: String| FetchError::Bundle { path: path.display().to_string(), reason };
    let bytes = entry(file, INDEX).map_err(bad)?;
    if bytes > MAX_INDEX {
        return Err(bad(format!("its index has {bytes} bytes; {MAX_INDEX} are accepted")));
    }
    let mut text = vec![0; bytes as usize];
    file.read_exact(&mut text).map_err(|_| bad("it ends in its index".to_owned()))?;
    skip_padding(file, bytes).map_err(bad)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| bad(format!("its index: {error}")))?;
    judge(&index).map_err(bad)?;
    Ok(index)
}

fn judge(index: &Index) -> Result<(), String> {
    if index.format != FORMAT {
        return Err(format!("its format is {}; this version reads {FORMAT}", index.format));
    }
    if index.models.len() > MAX_MODELS || !index.models.is_sorted_by(|a, b| a.name < b.name) {
        return Err("its models are too many, or not sorted".to_owned());
    }
    let mut total = 0_u64;
    for model in &index.models {
        if !is_name(&model.name) {
            return Err("one of its models has a name no model can have".to_owned());
        }
        let places: Option<Vec<usize>> = model
            .files
            .iter()
            .map(|packed| ModelFile::ALL.iter().position(|file| file.name() == packed.name))
            .collect();
        let Some(places) = places.filter(|places| places.is_sorted_by(|a, b| a < b)) else {
            return Err(format!("`{}` has files no model has, or in another order", model.name));
        };
        if !places.starts_with(&[0, 1]) {
            return Err(format!("`{}` lacks its weights or its configuration", model.name));
        }
        for packed in &model.files {
            total = total.checked_add(packed.bytes).ok_or("its sizes are absurd")?;
        }
    }
    Ok(())
}

/// Reads the next header: it must be of a regular file called `name`. Its size.
fn entry(file: &mut File, name: &str) -> Result<u64, String> {
    let mut header = tar::Header::new_ustar();
    file.read_exact(header.as_mut_bytes()).map_err(|_| format!("it ends before `{name}`"))?;
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    if header.cksum().ok() != Some(sum) {
        return Err(format!("it is damaged before `{name}`"));
    }
    if *header.path_bytes() != *name.as_bytes() || header.entry_type() != tar::EntryType::Regular {
        return Err(format!("it has something else where `{name}` should be"));
    }
    header.entry_size().map_err(|error| error.to_string())
}

fn listed(file: &mut File, model: &Packed, packed: &PackedFile) -> Result<(), String> {
    let name = format!("{}/{}", model.name, packed.name);
    match entry(file, &name)? {
        bytes if bytes == packed.bytes => Ok(()),
        bytes => Err(format!("`{name}` has {bytes} bytes; its index says {}", packed.bytes)),
    }
}

fn skip(file: &mut File, model: &Packed, packed: &PackedFile) -> Result<(), String> {
    listed(file, model, packed)?;
    let padded = packed.bytes.checked_next_multiple_of(512).and_then(|bytes| i64::try_from(bytes).ok());
    let padded = padded.ok_or("its sizes are absurd")?;
    file.seek(SeekFrom::Current(padded)).map_err(|error| error.to_string())?;
    Ok(())
}

fn skip_padding(file: &mut File, bytes: u64) -> Result<(), String> {
    let rest = bytes.next_multiple_of(512) - bytes;
    file.seek(SeekFrom::Current(rest as i64)).map_err(|error| error.to_string())?;
    Ok(())
}

/// Writes one file of a model, and holds it against its hash.
fn extract(
    file: &mut File,
    path: &Path,
    model: &Packed,
    packed: &PackedFile,
    dir: &Path,
    total: u64,
    caller: &Caller,
) -> Result<(), FetchError> {
    let bad = |reason: String| FetchError::Bundle { path: path.display().to_string(), reason };
    listed(file, model, packed).map_err(bad)?;
    // `judge` let only the names of a model's own files through.
    let target = dir.join(&packed.name);
    let mut out = File::create_new(&target).map_err(FetchError::io("create", &target))?;
    let (mut hash, mut left, mut buffer) = (Sha256::new(), packed.bytes, vec![0; BUFFER]);
    while left > 0 {
        let want = left.min(BUFFER as u64) as usize;
        let read = file.read(&mut buffer[..want]).map_err(FetchError::io("read", path))?;
        if read == 0 {
            return Err(bad(format!("it ends in `{}/{}`", model.name, packed.name)));
        }
        hash.update(&buffer[..read]);
        out.write_all(&buffer[..read]).map_err(FetchError::write(&target, left))?;
        left -= read as u64;
        caller.progress(file.stream_position().unwrap_or_default().min(total), Some(total));
        caller.check()?;
    }
    skip_padding(file, packed.bytes).map_err(bad)?;
    let computed = hex(&hash.finalize().into());
    if computed != packed.sha256 {
        return Err(bad(format!(
            "`{}/{}` is damaged\n  expected sha256:{}\n  computed sha256:{computed}",
            model.name, packed.name, packed.sha256
        )));
    }
    Ok(())
}
