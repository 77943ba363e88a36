//! A checkpoint into a model of the store: converted, checked, and only then given the model's name.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::caller::Caller;
use super::lock::nonce;
use super::options::Checked;
use super::tree::hex;
use super::{Event, FetchError, Options, Store};
use crate::causes::in_full;
use crate::checkpoint::Checkpoint;
use crate::convert::{Plan, Request, config_text};
use crate::identify;
use crate::model::{Canonical, ModelConfig, ModelFile, VitConfig, Weights, vit_parameters};
use crate::zoo::{Manifest, Source};

/// `source_sha256` of a model whose file was never here as a whole.
pub(super) const IN_PART: &str = "unknown: read in part";

/// What is known of the checkpoint that is converted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    /// The whole file, verified: its sha256.
    Whole(&'a str),
    /// Only the entries that were needed, each compared with the archive's checksum.
    Part,
}

/// A model that has taken its place.
#[derive(Debug)]
pub(super) struct Made {
    pub dir: PathBuf,
    pub checked: Checked,
    /// sha256 of its tensors, whatever file they came in; computed where no hash of the file stands for them.
    pub tensors: Option<String>,
}

/// What all ways to a model need.
#[derive(Clone, Copy)]
pub(super) struct Recipe<'a> {
    pub store: &'a Store,
    pub manifest: &'a Manifest,
    pub source: &'a Source,
    pub options: &'a Options,
    /// The tensors' sha256 when the address was first read in part, and the file that says so.
    pub pinned: Option<(&'a str, &'a str)>,
}

impl Recipe<'_> {
    /// What a conversion of this source is asked for: facts no tensor says are the manifest's.
    pub(super) fn request(&self) -> Request {
        let Self { manifest, source, .. } = self;
        Request {
            family: source.converter.clone(),
            branch: source.branch.clone(),
            heads: Some(manifest.vit.heads),
            norm_eps: Some(manifest.vit.norm_eps),
            image_size: Some(manifest.vit.image_size),
            sidecar: None,
        }
    }

    /// Writes the model directory; the tensors must be those the manifest describes, and do what its golden record says.
    pub(super) fn make(
        &self,
        checkpoint: &Checkpoint,
        origin: Origin<'_>,
        caller: &Caller,
    ) -> Result<Made, FetchError> {
        let Self { store, manifest, source, options, pinned } = *self;
        caller.tell(Event::Converting);
        let plan = Plan::new(checkpoint, &self.request())?;
        let address = source.address(options.hub.as_deref());
        let wrong =
            |reason: String| FetchError::Structure { origin: address.clone(), model: manifest.name.clone(), reason };
        same_architecture(plan.vit(), &manifest.vit).map_err(wrong)?;
        let fresh = Fresh::new(store, &manifest.name);
        let mut made =
            plan.apply(checkpoint, &source.file_name(), &fresh.0, &mut |progress| caller.converting(progress))?;
        match origin {
            // Hashed once more while it was read: what was converted is what was verified.
            Origin::Whole(sha256) if made.config.provenance.source_sha256 != sha256 => {
                return Err(wrong("the file changed while it was converted".to_owned()));
            }
            Origin::Whole(_) => {}
            Origin::Part => IN_PART.clone_into(&mut made.config.provenance.source_sha256),
        }
        let config = described(made.config, manifest);
        let path = fresh.0.join(ModelFile::Config.name());
        std::fs::write(&path, config_text(&config, true)).map_err(FetchError::io("write", &path))?;
        let tensors = match (origin, pinned) {
            (Origin::Whole(_), None) => None,
            _ => Some(tensors(&fresh.0, caller)?),
        };
        if let (Some((pinned, pins)), Some(tensors)) = (pinned, &tensors)
            && pinned != tensors
        {
            return Err(FetchError::TensorPin {
                origin: super::address::shown(&address),
                pinned: pinned.to_owned(),
                tensors: tensors.clone(),
                pins: pins.to_owned(),
            });
        }
        let checked = self::place(store, manifest, &fresh, options, caller)?;
        Ok(Made { dir: store.model_dir(&manifest.name), checked, tensors })
    }
}

/// A directory beside the models, removed unless it became one.
pub(super) struct Fresh(pub(super) PathBuf);

impl Fresh {
    pub(super) fn new(store: &Store, name: &str) -> Self {
        Self(store.model_dir(name).with_file_name(format!(".{name}-{}", nonce())))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // Gone already where all went well.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Checks a finished model directory and gives it its name.
pub(super) fn place(
    store: &Store,
    manifest: &Manifest,
    fresh: &Fresh,
    options: &Options,
    caller: &Caller,
) -> Result<Checked, FetchError> {
    let golden = store.overlay().join(format!("{}.golden.safetensors", manifest.name));
    let kept = fresh.0.join(ModelFile::Golden.name());
    if golden.is_file() {
        std::fs::copy(&golden, &kept).map_err(FetchError::io("copy", &golden))?;
    }
    let structure = structure(&fresh.0, manifest)?;
    let checked = if kept.is_file() { replayed(&fresh.0, manifest, &kept, structure, caller)? } else { structure };
    caller.check()?;
    caller.tell(Event::Checked { how: checked.clone() });
    store.replace_model(&manifest.name, &fresh.0, options.chunk, caller)?;
    remember(store, &manifest.name, caller);
    Ok(checked)
}

/// Keeps the fingerprint of a model of the store. It is made again by whoever asks, should it be missing, so a caller who
/// said stop does not wait for it.
pub(super) fn remember(store: &Store, name: &str, caller: &Caller) {
    let mut watch = |progress: identify::Progress| {
        caller.progress(progress.done, Some(progress.total));
        caller.flow()
    };
    match identify::remember(&store.fingerprints(), name, &store.model_dir(name), &mut watch) {
        Ok(()) | Err(identify::IdentifyError::Interrupted) => {}
        Err(error) => caller.tell(Event::Unremembered { reason: in_full(&error) }),
    }
}

/// What can be said without a record: the tensors are exactly as many, with as many values, as the architecture has.
fn structure(dir: &Path, manifest: &Manifest) -> Result<Checked, FetchError> {
    let model = Canonical::open(dir)?;
    let views = || model.model().names().filter_map(|name| model.model().get(name));
    let tensors = views().count();
    let parameters: u64 = views().map(|view| view.shape.iter().product::<usize>() as u64).sum();
    let bytes: u64 = views().map(|view| view.bytes.len() as u64).sum();
    let expected = vit_parameters(&manifest.vit);
    if (tensors, parameters) != (expected.len(), manifest.parameters()) {
        return Err(FetchError::Structure {
            origin: model.config().provenance.source_file.clone(),
            model: manifest.name.clone(),
            reason: format!(
                "it has {tensors} tensors with {parameters} parameters, not {} with {}",
                expected.len(),
                manifest.parameters()
            ),
        });
    }
    Ok(Checked::Structure { tensors, parameters, bytes, position: model.config().vit.position.kind })
}

/// Replays a record of activations.
#[cfg(feature = "candle")]
fn replayed(
    dir: &Path,
    manifest: &Manifest,
    golden: &Path,
    _: Checked,
    caller: &Caller,
) -> Result<Checked, FetchError> {
    use crate::verify::{self, Golden, Options, Origin};

    let failed = |reason: String| FetchError::Golden { model: manifest.name.clone(), reason };
    let record = Golden::open(golden).map_err(|error| failed(in_full(&error)))?;
    let report = verify::verify(&Canonical::open(dir)?, &record, &Options::default(), &mut |_| caller.flow());
    caller.check()?;
    let report = report.map_err(|error| failed(in_full(&error)))?;
    if report.holds != Some(true) {
        return Err(failed(report.to_string()));
    }
    let worst = report.stages.iter().filter_map(|stage| stage.difference).map(|difference| difference.relative);
    Ok(Checked::Golden {
        stages: report.stages.len(),
        worst: worst.fold(0.0, f64::max),
        upstream: report.origin == Origin::Upstream,
    })
}

/// Without a forward pass there is nothing to replay with.
#[cfg(not(feature = "candle"))]
fn replayed(_: &Path, _: &Manifest, _: &Path, structure: Checked, _: &Caller) -> Result<Checked, FetchError> {
    Ok(structure)
}

/// sha256 over name, type, shape and bytes of every tensor of a model directory, each preceded by its length.
fn tensors(dir: &Path, caller: &Caller) -> Result<String, FetchError> {
    let mut hash = Sha256::new();
    for file in [ModelFile::Model, ModelFile::Adapters, ModelFile::Neck, ModelFile::Decoder] {
        let path = dir.join(file.name());
        if !path.is_file() {
            continue;
        }
        let weights = Weights::open(&path)?;
        for (name, tensor) in weights.names().filter_map(|name| Some((name, weights.get(name)?))) {
            let head = format!("{} {name} {} {:?}", file.name(), tensor.dtype, tensor.shape);
            for part in [head.as_bytes(), tensor.bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                for piece in part.chunks(1 << 20) {
                    caller.check()?;
                    hash.update(piece);
                }
            }
        }
    }
    Ok(hex(&hash.finalize().into()))
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
pub(super) fn same_architecture(found: &VitConfig, stated: &VitConfig) -> Result<(), String> {
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
