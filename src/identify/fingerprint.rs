//! What is known: fingerprints of models, kept as small files in a folder of their own.

use std::collections::HashSet;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{IdentifyError, Progress, Unit, in_parallel};
use crate::model::{Canonical, Licence, ModelFile, Weights};
use crate::staged::StagedFile;

/// Bounds on what is read: ViT-g's fingerprint has under 1 MB.
const MAX_BYTES: u64 = 64 << 20;
const MAX_FINGERPRINTS: usize = 10_000;
const FORMAT: u32 = 1;

/// A model by its values, with what its users must know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    format: u32,
    /// Name of the model.
    pub model: String,
    /// Family.
    pub family: String,
    /// Branch of the checkpoint it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Branches that lay beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_branches: Vec<String>,
    /// Licence of the weights.
    pub licence: Licence,
    /// Models it was trained from, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<String>,
    /// sha256 of the checkpoint it was converted from.
    pub source_sha256: String,
    /// Backbone, adapters and decoder.
    pub units: Vec<Unit>,
}

/// Takes the fingerprint of `model`.
///
/// # Errors
/// [`IdentifyError::Model`] when one of its files cannot be read, [`IdentifyError::Interrupted`] when `watch` said stop.
pub fn of_model(
    name: &str,
    model: &Canonical,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Fingerprint, IdentifyError> {
    let config = model.config();
    let decoder = model.dir().join(ModelFile::Decoder.name());
    let decoder = if decoder.is_file() { Some(Weights::open(&decoder)?) } else { None };
    // What is computed when a checkpoint is converted, no checkpoint holds: TEC's class token; where there are
    // registers, the class token with its row of the position table; and a table that lost that row.
    let computed = |name: &str| match name {
        "cls_token" => config.vit.registers > 0 || config.provenance.converter == "tec",
        "pos_embed" => !config.vit.has_class_position(),
        _ => false,
    };
    let files = [Some(model.model()), model.adapters(), decoder.as_ref()];
    let tensors: Vec<_> = files
        .into_iter()
        .flatten()
        .flat_map(|file| file.names().filter(|name| !computed(name)).filter_map(|name| file.get(name)))
        .collect();
    let tall: HashSet<usize> = tensors.iter().filter_map(|tensor| super::unit::fused(tensor.shape)).collect();
    let sizes: Vec<u64> = tensors.iter().map(|tensor| tensor.bytes.len() as u64).collect();
    let units = in_parallel(&sizes, watch, |index, stop| {
        let tensor = &tensors[index];
        match super::unit::is_float(tensor.dtype) {
            true => Unit::all(tensor.bytes, tensor.dtype, tensor.shape, &tall, stop),
            false => Vec::new(),
        }
    })?;
    Ok(Fingerprint {
        format: FORMAT,
        model: name.to_owned(),
        family: config.family.clone(),
        branch: config.provenance.branch.clone(),
        other_branches: config.provenance.other_branches.clone(),
        licence: config.licence.clone(),
        lineage: config.provenance.lineage.clone(),
        source_sha256: config.provenance.source_sha256.clone(),
        units: units.into_iter().flatten().collect(),
    })
}

/// Takes the fingerprint of the model directory `dir` and keeps it in `folder`, over an earlier one of that name.
///
/// # Errors
/// The model cannot be read, or the fingerprint not written, or `watch` said stop.
pub fn remember(
    folder: &Path,
    name: &str,
    dir: &Path,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), IdentifyError> {
    let fingerprint = of_model(name, &Canonical::open(dir)?, watch)?;
    let path = folder.join(format!("{name}.json"));
    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut staged = StagedFile::new(&path)?;
        staged.file().write_all(serde_json::to_string(&fingerprint).map_err(std::io::Error::from)?.as_bytes())?;
        staged.commit()
    };
    write().map_err(io("write", &path))
}

/// Forgets the model `name`; that it was not known is no failure.
///
/// # Errors
/// The fingerprint cannot be removed.
pub fn forget(folder: &Path, name: &str) -> Result<(), IdentifyError> {
    let path = folder.join(format!("{name}.json"));
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// Every fingerprint of `folder`, by file name; none where there is no such folder.
///
/// # Errors
/// [`IdentifyError::Fingerprint`] for a file that is none.
pub fn known(folder: &Path) -> Result<Vec<Fingerprint>, IdentifyError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries.take(MAX_FINGERPRINTS) {
        let path = entry.map_err(io("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A write in progress starts with a dot.
        if name.ends_with(".json") && !name.starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |index: usize, _: &_| read(&paths[index]);
    in_parallel(&vec![0; paths.len()], &mut |_| ControlFlow::Continue(()), read)?.into_iter().collect()
}

fn read(path: &Path) -> Result<Fingerprint, IdentifyError> {
    let bad = |reason: String| IdentifyError::Fingerprint { path: path.display().to_string(), reason };
    let bytes = std::fs::metadata(path).map_err(io("read", path))?.len();
    if bytes > MAX_BYTES {
        return Err(bad(format!("{bytes} bytes are more than the {MAX_BYTES} accepted")));
    }
    let text = std::fs::read_to_string(path).map_err(io("read", path))?;
    let fingerprint: Fingerprint = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if fingerprint.format != FORMAT {
        return Err(bad(format!("its format is {}; this version reads {FORMAT}", fingerprint.format)));
    }
    match fingerprint.units.iter().position(|unit| !unit.is_sound()) {
        Some(index) => Err(bad(format!("its unit {index} is malformed"))),
        None => Ok(fingerprint),
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> IdentifyError + 'a {
    move |source| IdentifyError::Io { action, path: path.display().to_string(), source }
}
