//! What `<MODEL>` names: a directory in the common format, or a model of the zoo.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hint::Advised;
use crate::fetch::Store;
use crate::hint::{Command, Hint};
use crate::model::{Canonical, ModelFile};
use crate::zoo::{Manifest, Zoo};

/// The tool's own folder: `TEC_ZOO_HOME`, else `tec-zoo` in the platform's cache folder.
pub(super) fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("TEC_ZOO_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let cache = dirs::cache_dir()
        .ok_or_else(|| Advised::refusal("this system has no cache folder", "set TEC_ZOO_HOME to a folder"))?;
    Ok(cache.join("tec-zoo"))
}

/// The user's own manifests.
pub(super) fn overlay() -> Result<PathBuf> {
    Ok(home()?.join("zoo"))
}

/// The embedded catalogue under the user's overlay.
pub(super) fn zoo() -> Result<Zoo> {
    Ok(Zoo::with_overlay(&overlay()?)?)
}

/// Whether `model` is meant as a directory rather than a name.
pub(super) fn is_directory(model: &str) -> bool {
    model.contains(['/', '\\'])
        || model == "."
        || model == ".."
        || Path::new(model).join(ModelFile::Config.name()).exists()
}

/// The directory `model` names.
pub(super) fn directory(model: &str) -> Result<PathBuf> {
    if is_directory(model) {
        return Ok(PathBuf::from(model));
    }
    let zoo = zoo()?;
    let manifest = zoo.get(model)?;
    match present(manifest)? {
        Some(directory) => Ok(directory),
        None => Err(absent(model)),
    }
}

/// The refusal of a model that is known and not on this machine.
pub(super) fn absent(model: &str) -> anyhow::Error {
    let text = format!("`{model}` is a known model, but it is not here");
    Advised::refusal(text, Hint::new().command(Command::new("fetch").word(model.to_owned())))
}

/// Where a model of the zoo is, if it is on this machine.
pub(super) fn present(manifest: &Manifest) -> Result<Option<PathBuf>> {
    if let Some(directory) = &manifest.directory {
        return Ok(directory.is_dir().then(|| directory.clone()));
    }
    // Looking must not make the store's folders.
    match home()? {
        home if home.is_dir() => Ok(Store::open(&home)?.model(&manifest.name)),
        _ => Ok(None),
    }
}

/// Opens `model`.
pub(super) fn open(model: &str) -> Result<Canonical> {
    Ok(Canonical::open(&directory(model)?)?)
}
