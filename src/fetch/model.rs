//! One model of the catalogue into the store, in the common format.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::caller::{Caller, attended};
use super::download::{Wanted, download};
use super::http::Http;
use super::import::{Origin, elsewhere, hash_file, recognise};
use super::make::Origin::Whole;
use super::make::{Made, Recipe};
use super::options::Checked;
use super::partial::{self, Reading};
use super::pins::Pins;
use super::retry::Failure;
use super::{Blob, Event, FetchError, Options, Store, address};
use crate::causes::in_full;
use crate::checkpoint::Checkpoint;
use crate::convert::ConvertError;
use crate::model::Canonical;
use crate::zoo::{Digest, Manifest, Source, Status};

/// A model that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// The model directory.
    pub dir: PathBuf,
    /// Whether it was there before.
    pub cached: bool,
    /// sha256 of the file it was made from; unknown for a registered directory.
    pub source_sha256: Option<String>,
    /// Where that file came from; `None` when nothing was fetched.
    pub address: Option<String>,
    /// How the model was checked before it got its name; `None` when it was there before.
    pub checked: Option<Checked>,
    /// Bytes that were fetched and bytes of the whole file, when only a part of it was read.
    pub in_part: Option<(u64, u64)>,
}

/// Brings `manifest`'s model into the store, unless it is there: its sources in turn, each resumed where an earlier run
/// stopped, verified, converted, and checked before it gets its name.
///
/// The check replays the model's golden record, where one lies beside the user's manifests
/// (`<overlay>/<name>.golden.safetensors`); without one, the tensors are counted against the architecture.
///
/// # Errors
/// [`FetchError`] names every source with what was wrong with it; [`FetchError::Interrupted`] when `events` answered with
/// [`ControlFlow::Break`]. Nothing wrong, and nothing half-written, is ever left under the model's name.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use std::path::Path;
/// use tec_zoo::fetch::{Options, Store, fetch};
/// use tec_zoo::zoo::Zoo;
///
/// let zoo = Zoo::embedded()?;
/// let store = Store::open(Path::new("cache"))?;
/// let fetched = fetch(&store, zoo.get("ibot-vitb")?, &Options::default(), &mut |_| ControlFlow::Continue(()))?;
/// println!("{}", fetched.dir.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fetch(
    store: &Store,
    manifest: &Manifest,
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Fetched, FetchError> {
    attended(events, |caller| from_sources(store, manifest, options, caller))
}

fn from_sources(store: &Store, manifest: &Manifest, options: &Options, caller: &Caller) -> Result<Fetched, FetchError> {
    if let Some(there) = present(store, manifest, caller)? {
        return Ok(there);
    }
    let _lock = store.lock(&format!("model {}", manifest.name), options.stale_lock, caller)?;
    // Another process may have been faster.
    if let Some(there) = present(store, manifest, caller)? {
        return Ok(there);
    }
    let pins_path = store.pins_path(&manifest.name);
    let mut pins = Pins::load(&pins_path)?;
    let candidates = candidates(manifest, &pins, &pins_path, options);
    // A file that is there already needs no network.
    for (wanted, source) in &candidates {
        if let Some(sha256) = wanted.sha256()
            && let Some(blob) = store.find(sha256, caller)?
        {
            let recipe = Recipe { store, manifest, source, options, pinned: None };
            let made = finish(&recipe, &blob, caller).map_err(FetchError::resuming)?;
            return Ok(fetched(made, &blob, None));
        }
    }
    if let Some(there) = from_elsewhere(store, manifest, &candidates, options, caller)? {
        return Ok(there);
    }
    if options.offline {
        return Err(FetchError::Offline { model: manifest.name.clone() });
    }
    let http = client(options)?;
    let mut failures = Vec::new();
    let pins_shown = pins_path.display().to_string();
    for (wanted, source) in &candidates {
        caller.tell(Event::Source { address: address::shown(&wanted.address) });
        let tensors = pins.tensors(&wanted.address).map(str::to_owned);
        let pinned = tensors.as_deref().map(|tensors| (tensors, pins_shown.as_str()));
        let recipe = Recipe { store, manifest, source, options, pinned };
        let result = match partial::read(&recipe, wanted, caller) {
            Ok(Some(Reading { made, fetched, total })) => {
                pins.add(&pins_path, &wanted.address, None, made.tensors.as_deref(), total)?;
                Ok(Fetched {
                    dir: made.dir,
                    cached: false,
                    source_sha256: None,
                    address: Some(address::shown(&wanted.address)),
                    checked: Some(made.checked),
                    in_part: Some((fetched, total)),
                })
            }
            Ok(None) => download(store, &http, wanted, manifest.parameters() * 4, options, caller).and_then(|blob| {
                let made = finish(&recipe, &blob, caller).map_err(|error| match wanted.sha256() {
                    Some(_) => error.resuming(),
                    None => {
                        // Nothing would find a file again that nobody knows the hash of.
                        if matches!(error, FetchError::Interrupted { .. }) {
                            store.discard(&blob.sha256);
                        }
                        error
                    }
                })?;
                if !wanted.hashes.iter().any(|digest| matches!(digest, Digest::Sha256(_))) {
                    pins.add(&pins_path, &wanted.address, Some(&blob.sha256), None, blob.bytes)?;
                }
                Ok(fetched(made, &blob, Some(&wanted.address)))
            }),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if !error.is_local() => {
                let reason = in_full(&error);
                caller.tell(Event::Failed { address: address::shown(&wanted.address), reason });
                failures.push(error);
            }
            other => return other,
        }
    }
    Err(FetchError::Sources { model: manifest.name.clone(), failures })
}

/// The model from a file that another tool has downloaded, when that is provably one of the sources'. Whatever is wrong
/// with such a file, the sources remain.
fn from_elsewhere(
    store: &Store,
    manifest: &Manifest,
    candidates: &[(Wanted, &Source)],
    options: &Options,
    caller: &Caller,
) -> Result<Option<Fetched>, FetchError> {
    for (wanted, source) in candidates {
        if wanted.hashes.is_empty() && wanted.pinned.is_none() {
            continue;
        }
        for path in elsewhere(source, options) {
            let sized = |bytes| std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes);
            if !wanted.bytes.is_none_or(sized) {
                continue;
            }
            let read = hash_file(&path, caller);
            caller.check()?;
            let Ok((hashes, bytes)) = read else { continue };
            if wanted.check("", &hashes, bytes).is_err() {
                continue;
            }
            caller.tell(Event::Source { address: path.display().to_string() });
            let blob = Blob { sha256: hashes.sha256, path, bytes };
            let recipe = Recipe { store, manifest, source, options, pinned: None };
            match convert(&recipe, &blob, caller) {
                Ok(made) => return Ok(Some(fetched(made, &blob, None))),
                Err(_) => caller.check()?,
            }
        }
    }
    Ok(None)
}

/// Like [`fetch`], from a file or an address the caller names; it must be one of the model's files.
///
/// # Errors
/// [`FetchError::Foreign`] when it is none of them; otherwise as for [`fetch`].
pub fn fetch_from(
    store: &Store,
    manifest: &Manifest,
    origin: &Origin,
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Fetched, FetchError> {
    attended(events, |caller| from_origin(store, manifest, origin, options, caller))
}

fn from_origin(
    store: &Store,
    manifest: &Manifest,
    origin: &Origin,
    options: &Options,
    caller: &Caller,
) -> Result<Fetched, FetchError> {
    if let Some(there) = present(store, manifest, caller)? {
        return Ok(there);
    }
    let _lock = store.lock(&format!("model {}", manifest.name), options.stale_lock, caller)?;
    // Another process may have been faster.
    if let Some(there) = present(store, manifest, caller)? {
        return Ok(there);
    }
    match origin {
        Origin::File(path) => {
            let (hashes, bytes) = hash_file(path, caller)?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let source = recognise(manifest, &path.display().to_string(), name, &hashes, bytes)?;
            let blob = Blob { sha256: hashes.sha256, path: path.clone(), bytes };
            let made = convert(&Recipe { store, manifest, source, options, pinned: None }, &blob, caller)?;
            Ok(fetched(made, &blob, None))
        }
        Origin::Url(url) => {
            if options.offline {
                return Err(FetchError::Offline { model: manifest.name.clone() });
            }
            let http = client(options)?;
            caller.tell(Event::Source { address: address::shown(url) });
            let wanted = Wanted { address: url.clone(), hashes: Vec::new(), bytes: None, pinned: None };
            let blob = download(store, &http, &wanted, manifest.parameters() * 4, options, caller)?;
            let shown = address::shown(url);
            let name = shown.rsplit('/').next().unwrap_or_default();
            // Nothing would find the file again.
            let made = hash_file(&blob.path, caller)
                .and_then(|(hashes, bytes)| {
                    let source = recognise(manifest, &shown, name, &hashes, bytes)?;
                    finish(&Recipe { store, manifest, source, options, pinned: None }, &blob, caller)
                })
                .inspect_err(|_| store.discard(&blob.sha256))?;
            Ok(fetched(made, &blob, Some(url)))
        }
    }
}

/// Brings one file into the store, whatever it is: `hashes` must agree where there are any, `bytes` where it is known.
///
/// # Errors
/// As for [`fetch`].
pub fn fetch_file(
    store: &Store,
    address: &str,
    hashes: &[Digest],
    bytes: Option<u64>,
    options: &Options,
    events: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Blob, FetchError> {
    let wanted = Wanted { address: address.to_owned(), hashes: hashes.to_vec(), bytes, pinned: None };
    attended(events, |caller| {
        if let Some(sha256) = wanted.sha256()
            && let Some(blob) = store.find(sha256, caller)?
        {
            return Ok(blob);
        }
        if options.offline {
            return Err(FetchError::Offline { model: address::shown(address) });
        }
        download(store, &client(options)?, &wanted, 0, options, caller)
    })
}

fn client(options: &Options) -> Result<Http<'_>, FetchError> {
    Http::new(options).map_err(|failure| match failure {
        Failure::Local(error) => error,
        Failure::Refused(reason) | Failure::Changed(reason) | Failure::Transient { reason, .. } => {
            FetchError::Source { address: "network".into(), reason }
        }
    })
}

fn fetched(made: Made, blob: &Blob, address: Option<&str>) -> Fetched {
    Fetched {
        dir: made.dir,
        cached: false,
        source_sha256: Some(blob.sha256.clone()),
        address: address.map(address::shown),
        checked: Some(made.checked),
        in_part: None,
    }
}

/// The model where it is whole in the store; refused where it never can be.
pub(super) fn present(store: &Store, manifest: &Manifest, caller: &Caller) -> Result<Option<Fetched>, FetchError> {
    let there = |dir: PathBuf, source_sha256| Fetched {
        dir,
        cached: true,
        source_sha256,
        address: None,
        checked: None,
        in_part: None,
    };
    if let Some(dir) = &manifest.directory {
        return Ok(Some(there(dir.clone(), None)));
    }
    if manifest.status == Status::Listed {
        let reason = manifest.reason.clone().unwrap_or_default();
        return Err(FetchError::Listed { model: manifest.name.clone(), reason });
    }
    let name = &manifest.name;
    // Touched is not damaged: read it, and believe it if it is what it was.
    let whole =
        store.model(name).is_some() || store.verify_model(name, caller)?.is_some_and(|damaged| damaged.is_empty());
    if !whole {
        return Ok(None);
    }
    let dir = store.model_dir(name);
    let config = Canonical::read_config(&dir)?;
    Ok(Some(there(dir, Some(config.provenance.source_sha256))))
}

/// Every address worth asking, in order: the mirror's copies first.
fn candidates<'a>(
    manifest: &'a Manifest,
    pins: &Pins,
    pins_path: &Path,
    options: &Options,
) -> Vec<(Wanted, &'a Source)> {
    let plain = manifest.sources.iter().map(|source| (source.address(options.hub.as_deref()), source));
    let mirrored = options.mirror.iter().flat_map(|mirror| {
        let copy = |source: &'a Source| Some((address::mirrored(mirror, &source.address(None))?, source));
        manifest.sources.iter().filter_map(copy)
    });
    let wanted = |(address, source): (String, &'a Source)| {
        let pin = pins.get(&address).map(|sha256| (sha256.to_owned(), pins_path.display().to_string()));
        let wanted = Wanted { address, hashes: source.hashes.clone(), bytes: source.bytes, pinned: pin };
        (wanted, source)
    };
    mirrored.chain(plain).map(wanted).collect()
}

/// Converts a file of the store, and drops what is no longer needed, or was never right.
fn finish(recipe: &Recipe<'_>, blob: &Blob, caller: &Caller) -> Result<Made, FetchError> {
    let result = convert(recipe, blob, caller);
    let unneeded = match &result {
        Ok(_) => !recipe.options.keep_source,
        // The file is good; what is in the way is not.
        Err(error) => !error.is_local(),
    };
    if unneeded {
        recipe.store.discard(&blob.sha256);
    }
    result
}

fn convert(recipe: &Recipe<'_>, blob: &Blob, caller: &Caller) -> Result<Made, FetchError> {
    let checkpoint = Checkpoint::open(&blob.path).map_err(ConvertError::from)?;
    recipe.make(&checkpoint, Whole(&blob.sha256), caller)
}
