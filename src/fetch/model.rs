//! One model of the catalogue into the store, in the common format.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::download::{Wanted, download};
use super::http::Http;
use super::import::{Origin, elsewhere, hash_file, recognise};
use super::lock::nonce;
use super::pins::Pins;
use super::retry::Failure;
use super::{Blob, Event, FetchError, Options, Store, address};
use crate::checkpoint::Checkpoint;
use crate::convert::{ConvertError, Plan, Request, config_text};
use crate::model::{Canonical, ModelConfig, ModelFile, VitConfig};
use crate::zoo::{Digest, Manifest, Source, Status};

/// A model that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The model directory.
    pub dir: PathBuf,
    /// Whether it was there before.
    pub cached: bool,
    /// sha256 of the file it was made from; unknown for a registered directory.
    pub source_sha256: Option<String>,
    /// Where that file came from; `None` when nothing was fetched.
    pub address: Option<String>,
}

/// Brings `manifest`'s model into the store, unless it is there: its sources in turn, each resumed where an earlier run
/// stopped, verified, converted. A golden check is the caller's.
///
/// # Errors
/// [`FetchError`] names every source with what was wrong with it. Nothing wrong is ever left under the model's name.
///
/// ```no_run
/// use std::path::Path;
/// use tec_zoo::fetch::{Options, Store, fetch};
/// use tec_zoo::zoo::Zoo;
///
/// let zoo = Zoo::embedded()?;
/// let store = Store::open(Path::new("cache"))?;
/// let fetched = fetch(&store, zoo.get("ibot-vitb")?, &Options::default(), &mut |_| {})?;
/// println!("{}", fetched.dir.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fetch(
    store: &Store,
    manifest: &Manifest,
    options: &Options,
    events: &mut dyn FnMut(Event),
) -> Result<Fetched, FetchError> {
    if let Some(there) = present(store, manifest)? {
        return Ok(there);
    }
    let _lock = store.lock(&format!("model {}", manifest.name), options.stale_lock, events)?;
    // Another process may have been faster.
    if let Some(there) = present(store, manifest)? {
        return Ok(there);
    }
    let pins_path = store.pins_path(&manifest.name);
    let mut pins = Pins::load(&pins_path)?;
    let candidates = candidates(manifest, &pins, &pins_path, options);
    // A file that is there already needs no network.
    for (wanted, source) in &candidates {
        if let Some(sha256) = wanted.sha256()
            && let Some(blob) = store.blob(sha256)?
        {
            return finish(store, manifest, source, &blob, options, events).map(|dir| fetched(dir, &blob, None));
        }
    }
    if let Some(there) = from_elsewhere(store, manifest, &candidates, options, events) {
        return Ok(there);
    }
    if options.offline {
        return Err(FetchError::Offline { model: manifest.name.clone() });
    }
    let http = client(options)?;
    let mut failures = Vec::new();
    for (wanted, source) in &candidates {
        events(Event::Source { address: address::shown(&wanted.address) });
        let converted = manifest.parameters() * 4;
        let result = download(store, &http, wanted, converted, options, events).and_then(|blob| {
            let dir = finish(store, manifest, source, &blob, options, events)?;
            if !wanted.hashes.iter().any(|digest| matches!(digest, Digest::Sha256(_))) {
                pins.add(&pins_path, &wanted.address, &blob.sha256, blob.bytes)?;
            }
            Ok(fetched(dir, &blob, Some(&wanted.address)))
        });
        match result {
            Err(error) if !error.is_local() => {
                let reason = error.to_string();
                events(Event::Failed { address: address::shown(&wanted.address), reason });
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
    events: &mut dyn FnMut(Event),
) -> Option<Fetched> {
    for (wanted, source) in candidates {
        if wanted.hashes.is_empty() && wanted.pinned.is_none() {
            continue;
        }
        for path in elsewhere(source, options) {
            let sized = |bytes| std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes);
            if !wanted.bytes.is_none_or(sized) {
                continue;
            }
            let Ok((hashes, bytes)) = hash_file(&path) else { continue };
            if wanted.check("", &hashes, bytes).is_err() {
                continue;
            }
            events(Event::Source { address: path.display().to_string() });
            let blob = Blob { sha256: hashes.sha256, path, bytes };
            if let Ok(dir) = convert(store, manifest, source, &blob, options, events) {
                return Some(fetched(dir, &blob, None));
            }
        }
    }
    None
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
    events: &mut dyn FnMut(Event),
) -> Result<Fetched, FetchError> {
    if let Some(there) = present(store, manifest)? {
        return Ok(there);
    }
    let _lock = store.lock(&format!("model {}", manifest.name), options.stale_lock, events)?;
    match origin {
        Origin::File(path) => {
            let (hashes, bytes) = hash_file(path)?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let source = recognise(manifest, &path.display().to_string(), name, &hashes, bytes)?;
            let blob = Blob { sha256: hashes.sha256, path: path.clone(), bytes };
            let dir = convert(store, manifest, source, &blob, options, events)?;
            Ok(fetched(dir, &blob, None))
        }
        Origin::Url(url) => {
            if options.offline {
                return Err(FetchError::Offline { model: manifest.name.clone() });
            }
            let http = client(options)?;
            events(Event::Source { address: address::shown(url) });
            let wanted = Wanted { address: url.clone(), hashes: Vec::new(), bytes: None, pinned: None };
            let blob = download(store, &http, &wanted, manifest.parameters() * 4, options, events)?;
            let (hashes, bytes) = hash_file(&blob.path)?;
            let shown = address::shown(url);
            let name = shown.rsplit('/').next().unwrap_or_default();
            let dir = recognise(manifest, &shown, name, &hashes, bytes)
                .and_then(|source| finish(store, manifest, source, &blob, options, events))
                .inspect_err(|_| store.discard(&blob.sha256))?;
            Ok(fetched(dir, &blob, Some(url)))
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
    events: &mut dyn FnMut(Event),
) -> Result<Blob, FetchError> {
    let wanted = Wanted { address: address.to_owned(), hashes: hashes.to_vec(), bytes, pinned: None };
    if let Some(sha256) = wanted.sha256()
        && let Some(blob) = store.blob(sha256)?
    {
        return Ok(blob);
    }
    if options.offline {
        return Err(FetchError::Offline { model: address::shown(address) });
    }
    download(store, &client(options)?, &wanted, 0, options, events)
}

fn client(options: &Options) -> Result<Http<'_>, FetchError> {
    Http::new(options).map_err(|failure| match failure {
        Failure::Local(error) => error,
        Failure::Refused(reason) | Failure::Changed(reason) | Failure::Transient { reason, .. } => {
            FetchError::Source { address: "network".into(), reason }
        }
    })
}

fn fetched(dir: PathBuf, blob: &Blob, address: Option<&str>) -> Fetched {
    let address = address.map(address::shown);
    Fetched { dir, cached: false, source_sha256: Some(blob.sha256.clone()), address }
}

/// The model where it is whole in the store; refused where it never can be.
fn present(store: &Store, manifest: &Manifest) -> Result<Option<Fetched>, FetchError> {
    let there = |dir: PathBuf, source_sha256| Fetched { dir, cached: true, source_sha256, address: None };
    if let Some(dir) = &manifest.directory {
        return Ok(Some(there(dir.clone(), None)));
    }
    if manifest.status == Status::Listed {
        let reason = manifest.reason.clone().unwrap_or_default();
        return Err(FetchError::Listed { model: manifest.name.clone(), reason });
    }
    let name = &manifest.name;
    // Touched is not damaged: read it, and believe it if it is what it was.
    let whole = store.model(name).is_some() || store.verify_model(name)?.is_some_and(|damaged| damaged.is_empty());
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
fn finish(
    store: &Store,
    manifest: &Manifest,
    source: &Source,
    blob: &Blob,
    options: &Options,
    events: &mut dyn FnMut(Event),
) -> Result<PathBuf, FetchError> {
    let result = convert(store, manifest, source, blob, options, events);
    let unneeded = match &result {
        Ok(_) => !options.keep_source,
        // The file is good; what is in the way is not.
        Err(error) => !error.is_local(),
    };
    if unneeded {
        store.discard(&blob.sha256);
    }
    result
}

/// Writes the model directory: facts no tensor says are the manifest's, and the tensors must be those it describes.
fn convert(
    store: &Store,
    manifest: &Manifest,
    source: &Source,
    blob: &Blob,
    options: &Options,
    events: &mut dyn FnMut(Event),
) -> Result<PathBuf, FetchError> {
    events(Event::Converting);
    let checkpoint = Checkpoint::open(&blob.path).map_err(ConvertError::from)?;
    let request = Request {
        family: source.converter.clone(),
        branch: source.branch.clone(),
        heads: Some(manifest.vit.heads),
        norm_eps: Some(manifest.vit.norm_eps),
        image_size: Some(manifest.vit.image_size),
        sidecar: None,
    };
    let plan = Plan::new(&checkpoint, &request)?;
    let wrong = |reason: String| FetchError::Structure {
        origin: source.address(options.hub.as_deref()),
        model: manifest.name.clone(),
        reason,
    };
    same_architecture(plan.vit(), &manifest.vit).map_err(wrong)?;
    let dir = store.model_dir(&manifest.name);
    let fresh = dir.with_file_name(format!(".{}-{}", manifest.name, nonce()));
    let cleanup = Cleanup(&fresh);
    let made = plan.apply(&checkpoint, &source.file_name(), &fresh, false, &mut |_| ControlFlow::Continue(()))?;
    // Hashed once more while it was read: what was converted is what was verified.
    if made.config.provenance.source_sha256 != blob.sha256 {
        return Err(wrong(format!("`{}` changed while it was converted", blob.path.display())));
    }
    let config = described(made.config, manifest);
    let path = fresh.join(ModelFile::Config.name());
    std::fs::write(&path, config_text(&config, true)).map_err(FetchError::io("write", &path))?;
    Canonical::open(&fresh)?;
    store.replace_model(&manifest.name, &fresh, options.chunk)?;
    drop(cleanup);
    Ok(dir)
}

/// The configuration with what only the manifest knows.
fn described(mut config: ModelConfig, manifest: &Manifest) -> ModelConfig {
    config.family.clone_from(&manifest.family);
    config.vit.position.resample = manifest.vit.position.resample;
    config.feature = manifest.feature;
    config.preprocessing = manifest.preprocessing;
    config.licence = manifest.licence.licence();
    config.provenance.lineage = manifest.base.as_ref().map(|base| base.one_of.join(" or ")).into_iter().collect();
    config.provenance.lineage.retain(|base| !base.is_empty());
    config
}

/// What tensors show of an architecture must be what the manifest says.
fn same_architecture(found: &VitConfig, stated: &VitConfig) -> Result<(), String> {
    let shown = |vit: &VitConfig| {
        let decoder = vit.decoder.map(|decoder| (decoder.width, decoder.depth));
        [
            ("image_size", format!("{:?}", vit.image_size)),
            ("patch_size", vit.patch_size.to_string()),
            ("width", vit.width.to_string()),
            ("depth", vit.depth.to_string()),
            ("mlp_width", vit.mlp_width.to_string()),
            ("mlp", format!("{:?}", vit.mlp)),
            ("layer_scale", vit.layer_scale.to_string()),
            ("registers", vit.registers.to_string()),
            ("final_norm", vit.final_norm.to_string()),
            ("classifier", format!("{:?}", vit.classifier)),
            ("decoder", format!("{decoder:?}")),
            // Fine-tuning may or may not have trained it.
            (
                "position table",
                if vit.classifier.is_some() { String::new() } else { format!("{:?}", vit.position.kind) },
            ),
        ]
    };
    let pairs = shown(found).into_iter().zip(shown(stated));
    let differ = pairs.filter(|(found, stated)| found != stated);
    let lines: Vec<String> = differ.map(|((what, is), (_, says))| format!("its {what} is {is}, not {says}")).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("; ")) }
}

/// Removes a directory that did not become a model.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        // Gone already where all went well.
        let _ = std::fs::remove_dir_all(self.0);
    }
}
