//! Putting an own model into the overlay folder.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::digest::sha256_of;
use super::manifest::is_name;
use super::{Base, LicenceFacts, Manifest, Status, Terms, Zoo, ZooError};
use crate::model::{Canonical, ModelFile, Provenance};
use crate::staged::StagedFile;

/// Refuses what cannot be the name of the model in the directory `model`; and, unless it may `overwrite`, one that
/// another model has.
///
/// # Errors
/// [`ZooError::Name`], [`ZooError::Taken`], and what [`Zoo::with_overlay`] says.
pub fn check_name(overlay: &Path, name: &str, model: &Path, overwrite: bool) -> Result<(), ZooError> {
    if !is_name(name) {
        return Err(ZooError::Name { name: name.to_owned() });
    }
    let taken = |released| Err(ZooError::Taken { name: name.to_owned(), released });
    match Zoo::with_overlay(overlay)?.get(name) {
        _ if overwrite => Ok(()),
        Err(_) => Ok(()),
        // To say the same again takes nothing from anybody.
        Ok(manifest) if manifest.directory.as_deref().is_some_and(|directory| same(directory, model)) => Ok(()),
        Ok(_) => taken(released(name)?),
    }
}

fn released(name: &str) -> Result<bool, ZooError> {
    Ok(Zoo::embedded()?.get(name).is_ok())
}

/// Whether two paths lead to one directory.
fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => std::path::absolute(a).is_ok_and(|a| std::path::absolute(b).is_ok_and(|b| a == b)),
    }
}

/// Registers the model directory `model` as `name` in `overlay`: writes its manifest, atomically, and returns the path.
/// The directory itself stays where it is. With `overwrite`, the name may be another model's: a registered one's manifest is
/// replaced, a released one is hidden by the new one until that is [removed](unregister).
///
/// # Errors
/// As for [`check_name`]; [`ZooError::Model`] when `model` is not in the common format, [`ZooError::Io`] when the overlay
/// cannot be written.
pub fn register(overlay: &Path, name: &str, model: &Path, overwrite: bool) -> Result<PathBuf, ZooError> {
    check_name(overlay, name, model, overwrite)?;
    let io = |path: &Path, source| ZooError::Io { path: path.display().to_string(), source };
    let model = std::path::absolute(model).map_err(|error| io(model, error))?;
    let config = Canonical::open(&model)?.config().clone();
    let known = Zoo::with_overlay(overlay)?;
    let base = base(&known, &config.provenance);
    // Terms follow the base where the catalogue knows it; silence is not permission.
    let terms = base.iter().flat_map(|base| &base.one_of).next();
    let terms = terms.and_then(|base| known.terms(base).ok()).unwrap_or(Terms::TreatAsNonCommercial);
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
        replaces: released(name)?,
        licence: LicenceFacts {
            spdx: config.licence.spdx.clone(),
            evidence: config.licence.evidence.clone(),
            terms,
            conflict: None,
        },
        vit: config.vit.clone(),
        preprocessing: config.preprocessing,
        base,
        tec: None,
        metrics: Vec::new(),
        sources: Vec::new(),
    };
    let path = overlay.join(format!("{name}.toml"));
    let text = toml::to_string_pretty(&manifest)
        .map_err(|error| ZooError::Manifest { file: path.display().to_string(), reason: error.to_string() })?;
    std::fs::create_dir_all(overlay).map_err(|error| io(overlay, error))?;
    let over = overwrite || path.exists();
    let write = || {
        let mut staged = StagedFile::new(&path)?;
        staged.file().write_all(text.as_bytes())?;
        staged.file().sync_all()?;
        if over { staged.commit() } else { staged.commit_new() }
    };
    match write() {
        Ok(()) => Ok(path),
        // Another process was faster.
        Err(error) if !over && error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(ZooError::Taken { name: name.to_owned(), released: false })
        }
        Err(error) => Err(io(&path, error)),
    }
}

/// The nearest model of the lineage: one of the catalogue where its name means the weights that were the base, words
/// where it does not.
fn base(zoo: &Zoo, provenance: &Provenance) -> Option<Base> {
    let name = provenance.lineage.first()?;
    let sha256 = provenance.base_sha256(0);
    let is = |manifest: &Manifest| match (&manifest.directory, sha256) {
        (Some(directory), Some(sha256)) => {
            sha256_of(&directory.join(ModelFile::Model.name())).is_ok_and(|(_, found)| found == sha256)
        }
        _ => true,
    };
    if zoo.get(name).is_ok_and(is) {
        return Some(Base { one_of: vec![name.clone()], note: None });
    }
    let note = match sha256 {
        Some(sha256) => format!("{name}, sha256 {sha256}"),
        None => name.clone(),
    };
    Some(Base { one_of: Vec::new(), note: Some(note) })
}

/// Takes back what [`register`] wrote; the model's directory stays, and a released model of that name is seen again.
/// Returns that directory.
///
/// # Errors
/// [`ZooError::Released`] and [`ZooError::Unknown`] for a name nobody registered; [`ZooError::Manifest`] for a manifest
/// that is no registration.
pub fn unregister(overlay: &Path, name: &str) -> Result<PathBuf, ZooError> {
    let path = overlay.join(format!("{name}.toml"));
    if !is_name(name) || !path.is_file() {
        Zoo::with_overlay(overlay)?.get(name)?;
        return Err(ZooError::Released { name: name.to_owned() });
    }
    let io = |source| ZooError::Io { path: path.display().to_string(), source };
    let bad = |reason: String| ZooError::Manifest { file: path.display().to_string(), reason };
    let text = std::fs::read_to_string(&path).map_err(io)?;
    let manifest = Manifest::parse(name, &text).map_err(bad)?;
    let directory =
        manifest.directory.ok_or_else(|| bad("it is none that registering wrote; delete it yourself".into()))?;
    std::fs::remove_file(&path).map_err(io)?;
    Ok(overlay.join(directory))
}
