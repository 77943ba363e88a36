//! Putting an own model into the overlay folder.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::manifest::is_name;
use super::{Base, LicenceFacts, Manifest, Status, Terms, Zoo, ZooError};
use crate::model::Canonical;
use crate::staged::StagedFile;

/// Refuses what cannot be a model's name.
///
/// # Errors
/// [`ZooError::Name`].
pub fn check_name(name: &str) -> Result<(), ZooError> {
    if is_name(name) { Ok(()) } else { Err(ZooError::Name { name: name.to_owned() }) }
}

/// Registers the model directory `model` as `name` in `overlay`: writes its manifest, atomically, and returns the path.
/// The directory itself stays where it is. An earlier model of that name is replaced.
///
/// # Errors
/// [`ZooError::Name`] for a name that cannot be used, [`ZooError::Model`] when `model` is not in the common format,
/// [`ZooError::Io`] when the overlay cannot be written.
pub fn register(overlay: &Path, name: &str, model: &Path) -> Result<PathBuf, ZooError> {
    check_name(name)?;
    let io = |path: &Path, source| ZooError::Io { path: path.display().to_string(), source };
    let model = std::path::absolute(model).map_err(|error| io(model, error))?;
    let config = Canonical::open(&model)?.config().clone();
    let known = Zoo::with_overlay(overlay)?;
    let one_of: Vec<String> = config.provenance.lineage.first().cloned().into_iter().collect();
    // Terms follow the base where the catalogue knows it; silence is not permission.
    let terms = one_of.first().and_then(|base| known.terms(base).ok()).unwrap_or(Terms::TreatAsNonCommercial);
    let manifest = Manifest {
        name: name.to_owned(),
        title: format!("registered from {}", config.provenance.source_file),
        family: config.family.clone(),
        status: Status::Ready,
        reason: None,
        quirks: Vec::new(),
        feature: config.feature,
        citation: String::new(),
        directory: Some(model),
        licence: LicenceFacts {
            spdx: config.licence.spdx.clone(),
            evidence: config.licence.evidence.clone(),
            terms,
            conflict: None,
        },
        vit: config.vit.clone(),
        preprocessing: config.preprocessing,
        base: (!one_of.is_empty()).then_some(Base { one_of, note: None }),
        tec: None,
        metrics: Vec::new(),
        sources: Vec::new(),
    };
    let path = overlay.join(format!("{name}.toml"));
    let text = toml::to_string_pretty(&manifest)
        .map_err(|error| ZooError::Manifest { file: path.display().to_string(), reason: error.to_string() })?;
    std::fs::create_dir_all(overlay).map_err(|error| io(overlay, error))?;
    let write = || {
        let mut staged = StagedFile::new(&path)?;
        staged.file().write_all(text.as_bytes())?;
        staged.file().sync_all()?;
        staged.commit()
    };
    write().map_err(|error| io(&path, error))?;
    Ok(path)
}
